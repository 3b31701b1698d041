"""The real `python -m verl.trainer.main_ppo`: a refusal ends it soon, and without a recipe nothing changes.

Each run costs some 10 CPU seconds, most of them for verl's imports: what the process itself adds is tested here once,
and every refusal and every recipe in test_preflight.py and test_recipes.py without one.
"""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from preflight_harness import TEACHER, Files
from recipes_harness import Finished, compose_in_full, run_main

from opd_verl.checks.preflight import Preflight
from opd_verl.cpu.selected import cpu_selected

OTHER_MACHINE = ["trainer.device=cuda"] if cpu_selected() else ["cluster=local_cpu"]
REFUSED = {
    "no teacher folder": [f"{TEACHER}=@nope"],
    "other machine": OTHER_MACHINE,
    "teacher unset": [f"{TEACHER}=null"],
    "other tokenizer": [f"{TEACHER}=@other_tokenizer"],
    "unknown key": ["+opd.nope=1"],
    "broken plugin": ["opd.plugins=[broken_hooks]"],
}
BY_HAND = [pytest.param(case, marks=pytest.mark.by_hand) for case in list(REFUSED)[1:]]
"""Their messages are those of the same checks in this process: test_preflight.py."""


@pytest.fixture(scope="module")
def verl_alone(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """verl's command without our plugin: it imports itself, composes its config, and prints it."""
    done = run_main(tmp_path_factory.mktemp("bare"), "--cfg", "job", VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.code == 0
    return done


def test_without_a_recipe_verls_config_is_untouched_to_the_byte(verl_alone: Finished) -> None:
    assert len(verl_alone.out.splitlines()) > 500
    assert verl_alone.out == OmegaConf.to_yaml(compose_in_full("ppo_trainer")), "this process has loaded the plugin"


@pytest.mark.parametrize("case", ["no teacher folder", *BY_HAND])
def test_a_refusal_ends_the_command_before_ray_starts(
    files: Files, tmp_path: Path, verl_alone: Finished, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    (tmp_path / "broken_hooks.py").write_text("raise RuntimeError('planted in broken_hooks')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    overrides = files.overrides(*REFUSED[case])
    done = run_main(tmp_path, *overrides, PYTHONPATH=str(tmp_path))
    assert done.code == 1 and not done.ray_started
    # CPU time, not time on the wall, and beside verl's own: the machine may be busy.
    seconds, bound = done.cpu_seconds, 2.0 * verl_alone.cpu_seconds
    assert seconds < bound, f"{seconds:.1f} s; verl alone takes half of {bound:.1f} s"
    with pytest.raises(SystemExit) as refused:
        Preflight().on_job_start(files.config(*REFUSED[case]))
    assert done.err.splitlines()[-1] == refused.value.code
    assert ("Traceback" in done.err) == (case == "broken plugin"), "only an error that nobody foresaw keeps its trace"
