"""The command's settings: defaults, presets, names, and everything that is refused before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from places import ROOT
from sampling_harness import CONTEXT, save_model, write_problems

from opd_verl.config.errors import ConfigError
from opd_verl.eval.config import EvalConfig, read_config
from opd_verl.eval.prepare import prepare_evaluation, with_roles
from opd_verl.sampling.model_names import distinct_names, named
from opd_verl.sampling.settings import RewardSettings

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


def composed(*overrides: str) -> EvalConfig:
    with initialize_config_module("hydra_configs.eval", version_base=None):
        return read_config(compose("eval", overrides=list(overrides)))


def test_the_yaml_has_every_key_with_the_default_of_the_class() -> None:
    plain = composed("~preset")
    assert plain == EvalConfig()
    keys = OmegaConf.load(ROOT / "hydra_configs" / "eval" / "eval.yaml").keys()
    assert set(keys) - {"defaults", "hydra"} == set(vars(EvalConfig())) - {"preset"}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("eopd", (8, 1.0, 0.8, 8192, {})),
        ("rethinking", (16, 0.7, 0.95, 31744, {})),
        ("capacity", (3, 1.0, 1.0, 6144, {"enable_thinking": False})),
        ("greedy", (1, 0.0, 1.0, 8192, {})),
    ],
)
def test_presets_are_the_papers(preset: str, expected: tuple[Any, ...]) -> None:
    config = composed(f"preset={preset}")
    actual = (config.n, config.temperature, config.top_p, config.max_tokens, config.chat_template_kwargs)
    assert actual == expected and config.suffix == BOXED and config.preset == preset
    config.check()


def test_eopd_is_the_default_and_any_key_beats_it() -> None:
    assert composed().preset == "eopd"
    config = composed("n=4", "max_tokens=64", "models={a:x/y,b:z}", "teacher=b", "reward.name=f", "engine.dtype=auto")
    assert (config.n, config.max_tokens, config.top_p, config.pass_ks) == (4, 64, 0.8, [1, 2, 4])
    assert config.models == {"a": "x/y", "b": "z"} and config.teacher == "b"
    assert config.reward == RewardSettings(name="f") and config.engine.dtype == "auto"
    assert config.sampling.max_tokens == 64


def test_a_wrong_type_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^n='many': .*Integer"):
        composed("n=many")
    with pytest.raises(HydraException, match="nn"):
        composed("nn=1")


def test_names_are_as_short_as_they_can_be() -> None:
    assert distinct_names(["runs/opd/model", "/x/base"]) == ["model", "base"]
    assert distinct_names(["a/opd/m", "a/eopd/m", "b"]) == ["opd-m", "eopd-m", "b"]
    assert distinct_names(["a/x/m", "b/x/m"]) == ["a-x-m", "b-x-m"]
    steps = [f"opd/global_step_{step}/actor/huggingface" for step in (10, 20)]
    assert distinct_names(steps) == ["global_step_10", "global_step_20"]
    assert distinct_names(["data/aime 24.parquet", "Qwen/Qwen3-1.7B"]) == ["aime_24", "Qwen3-1.7B"]


def test_models_may_be_given_in_any_form() -> None:
    assert named("models", ["a/b", "mine=c/d", "e/b"]) == {"a-b": "a/b", "mine": "c/d", "e-b": "e/b"}
    assert named("models", {"x": "a"}) == {"x": "a"}
    assert named("models", "a/b") == named("models", Path("a/b")) == {"b": "a/b"}
    assert named("models", ["a/x=1/b"]) == {"b": "a/x=1/b"}, "an equals sign inside a path"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no path is given"),
        ([], "no path is given"),
        (["a", "a"], "given twice"),
        (["x=a", "x=b"], "the same name"),
        (["a b", "a_b"], "the same name"),
        ({"a/b": "c"}, "letters"),
    ],
)
def test_names_that_cannot_be_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        named("models", value)


def test_roles_are_models_of_the_list_or_one_more() -> None:
    models = {"base": "p/base", "opd": "p/opd"}
    assert with_roles(models, {"teacher": "big", "before": "base"}) == (
        {**models, "teacher": "big"},
        {"teacher": "teacher", "before": "base"},
    )
    assert with_roles(models, {"teacher": "p/opd", "before": None})[1] == {"teacher": "opd", "before": None}
    with pytest.raises(ConfigError, match="is also the teacher"):
        with_roles(models, {"teacher": "opd", "before": "p/opd"})
    with pytest.raises(ConfigError, match="another model is named 'teacher'"):
        with_roles({"teacher": "x"}, {"teacher": "y", "before": None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 4, "temperature": 0.0}, r"temperature=0\.0: greedy.*n=1"),
        ({"ks": [1, 16]}, r"ks=\[1, 16\]: pass@16 needs k samples, there are n=8\. Remedy: n=16"),
        ({"ks": [0]}, "ks=.*ks=\\[1\\]"),
        ({"resamples": 10}, "resamples=10"),
        ({"entropy_responses": 0}, "entropy_responses=0"),
        ({"workers": 0}, "workers=0"),
        ({"reward": RewardSettings(name="nope")}, "reward=.*nope"),
        ({"models": None}, "models=None: no path is given"),
        ({"models": ["/nowhere"]}, r"models='/nowhere': no such model folder"),
        ({"teacher": "/nowhere"}, r"teacher='/nowhere': no such model folder"),
        ({"before": "./nowhere"}, r"before='\./nowhere': no such model folder"),
        ({"benchmarks": []}, r"benchmarks=\[\]: no path is given"),
        ({"benchmarks": ["aime24"]}, "benchmarks='aime24': no such file.*data convert aime24 --out aime24.parquet"),
        ({"benchmarks": {"average": "x.parquet"}}, "the mean over benchmarks"),
        ({"max_tokens": 8192}, rf"max_tokens=8192:.*context of {CONTEXT} tokens.*max_tokens={CONTEXT - 3}"),
        ({"max_prompt_tokens": 2}, "max_prompt_tokens=2: row 0 of .*bench.parquet has a prompt of 3 tokens"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = {
        "models": [save_model(tmp_path / "model")],
        "benchmarks": [str(write_problems(tmp_path / "bench.parquet"))],
        "out": str(tmp_path / "out"),
        "max_tokens": 16,
    }
    prepare_evaluation(EvalConfig(**settings))
    with pytest.raises(ConfigError, match=message):
        prepare_evaluation(EvalConfig(**settings | changes))
    assert not (tmp_path / "out").exists()
