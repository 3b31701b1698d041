"""A run that cannot work is refused in seconds, with one message that names the key, its value and the remedy."""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra._internal.callbacks import Callbacks
from omegaconf import DictConfig, OmegaConf
from test_recipes import Finished, compose_ppo, run_main
from tiny_models import save_tiny_qwen3, tiny_tokenizer
from transformers import AutoConfig

from opd_verl import preflight as module
from opd_verl.config import OpdConfig
from opd_verl.cpu.activate import cpu_selected
from opd_verl.errors import ConfigError
from opd_verl.preflight import Preflight, preflight

VOCAB, CONTEXT = 96, 128
MACHINE = ["cluster=cpu"] if cpu_selected() else []
OTHER_MACHINE = ["trainer.device=cuda"] if cpu_selected() else ["cluster=cpu"]
STUDENT, TEACHER = "actor_rollout_ref.model.path", "opd.teacher.path"
ACTOR, SP = "actor_rollout_ref.actor", "ulysses_sequence_parallel_size"
LOSS_MODE = f"{ACTOR}.policy_loss.loss_mode"


@dataclass(frozen=True)
class Files:
    """A student and its teacher that fit, other models by name, and a data file."""

    root: Path

    def path(self, name: str) -> str:
        return str(self.root / name)

    def overrides(self, *changes: str, recipe: str = "opd") -> list[str]:
        """A run that works, and what is wrong with it; `@name` stands for a model or file of ours."""
        good = [f"recipe={recipe}", *MACHINE, f"{STUDENT}=@student", f"{TEACHER}=@teacher"]
        good += ["data.train_files=@prompts", "data.val_files=[@prompts]"]
        good += ["data.max_prompt_length=16", "data.max_response_length=64"]
        return [item.replace("@", f"{self.root}/") for item in (*good, *changes)]

    def config(self, *changes: str, recipe: str = "opd") -> DictConfig:
        return compose_ppo(*self.overrides(*changes, recipe=recipe))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    found = Files(tmp_path_factory.mktemp("models"))
    save_tiny_qwen3(found.root / "student", VOCAB, seed=0)
    save_tiny_qwen3(found.root / "teacher", VOCAB, seed=1)
    for name, rows in (("student_120", 120), ("teacher_104", 104), ("too_few_rows", VOCAB - 8)):
        save_config(found.root / name, vocab_size=rows)
    save_config(found.root / "short_context", max_position_embeddings=70)
    save_config(found.root / "other_tokenizer", tokenizer=tiny_tokenizer(VOCAB - 1))
    other_eos = tiny_tokenizer(VOCAB)
    other_eos.eos_token = "w2"
    save_config(found.root / "other_eos", tokenizer=other_eos)
    save_config(found.root / "no_tokenizer").joinpath("tokenizer.json").unlink()
    (found.root / "no_tokenizer" / "tokenizer_config.json").unlink()
    (found.root / "empty").mkdir()
    (found.root / "prompts").touch()
    pq.write_table(
        pa.table({"prompt": [[{"role": "user", "content": "?"}]], "data_source": ["d"]}), found.root / "bare.parquet"
    )
    return found


def save_config(folder: Path, tokenizer: Any = None, **changes: int) -> Path:
    """A model folder without weights: the checks read none."""
    config = AutoConfig.for_model(
        "qwen3", **{"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "hidden_size": 32} | changes
    )
    config.save_pretrained(folder)
    (tokenizer or tiny_tokenizer(VOCAB)).save_pretrained(folder)
    return folder


# (changes, key, value, part of the problem, part of the remedy); `@name` as in Files.overrides
REFUSED: dict[str, tuple[list[str], str, Any, str, str]] = {
    "no student folder": ([f"{STUDENT}=@nope"], STUDENT, "@nope", "no such model folder", f"{STUDENT}=/path"),
    "no teacher folder": ([f"{TEACHER}=@nope"], TEACHER, "@nope", "no such model folder", f"{TEACHER}=/path"),
    "student unset": ([f"{STUDENT}=null"], STUDENT, None, "no such model folder", f"{STUDENT}=/path"),
    "teacher unset": ([f"{TEACHER}=null"], TEACHER, None, "no teacher is set", f"{TEACHER}=/path"),
    "teacher empty": ([f"{TEACHER}="], TEACHER, None, "no teacher is set", f"{TEACHER}=/path"),
    "home is not expanded": ([f"{TEACHER}='~/teacher'"], TEACHER, "~/teacher", "no such model folder", "/path"),
    "no model in the folder": (
        [f"{TEACHER}=@empty"],
        TEACHER,
        "@empty",
        "no model config there",
        "give a model folder",
    ),
    "no tokenizer": (
        [f"{TEACHER}=@no_tokenizer"],
        TEACHER,
        "@no_tokenizer",
        "no tokenizer there",
        "opd.teacher.tokenizer_path=",
    ),
    "unknown key": (["+opd.nope=1"], "opd.nope", 1, "'nope' not in 'OpdConfig'", "recipe/opd.yaml"),
    "unknown key below": (["+opd.teacher.nope=1"], "opd.teacher.nope", 1, "not in 'TeacherConfig'", "recipe/opd.yaml"),
    "wrong type": (["opd.objective.k=many"], "opd.objective.k", "many", "converted to Integer", "recipe/opd.yaml"),
    "wrong choice": (
        ["opd.objective.support=all"],
        "opd.objective.support",
        "all",
        "expected one of [sampled, student_topk]",
        "recipe/opd.yaml",
    ),
    "other tokenizer": (
        [f"{TEACHER}=@other_tokenizer"],
        TEACHER,
        "@other_tokenizer",
        "(95 and 96 tokens, 1 not shared)",
        "the student's model family",
    ),
    "other eos": (
        [f"{TEACHER}=@other_eos"],
        TEACHER,
        "@other_eos",
        "with 'w2', the student with 'w1'",
        "one eos_token",
    ),
    "teacher with too few rows": (
        [f"{TEACHER}=@too_few_rows"],
        TEACHER,
        "@too_few_rows",
        "vocab_size 88 is below the tokenizer's 96",
        "the tokenizer that belongs",
    ),
    "student with too few rows": (
        [f"{STUDENT}=@too_few_rows"],
        STUDENT,
        "@too_few_rows",
        "vocab_size 88 is below the tokenizer's 96",
        "the tokenizer that belongs",
    ),
    "teacher temperature": (
        ["opd.teacher.temperature=0.7"],
        "opd.teacher.temperature",
        0.7,
        "the rollout temperature is 1.0",
        "leave it unset",
    ),
    "temperature 0": (
        ["actor_rollout_ref.rollout.temperature=0"],
        "actor_rollout_ref.rollout.temperature",
        0,
        "must be positive",
        "use 1.0",
    ),
    "teacher's context": (
        [f"{TEACHER}=@short_context"],
        TEACHER,
        "@short_context",
        "context of 70 tokens, but data.max_prompt_length + data.max_response_length = 80",
        "lower data.max_response_length by 10",
    ),
    "student's context": (
        [f"{STUDENT}=@short_context"],
        STUDENT,
        "@short_context",
        "context of 70 tokens",
        "lower data.max_response_length by 10",
    ),
    "k above the vocabulary": (
        ["opd.objective.k=97"],
        "opd.objective.k",
        97,
        "the vocabulary has 96 tokens",
        "opd.objective.k=16",
    ),
    "k 0 for a hook": (
        ["opd.rewards=[reverse_kl,reverse_kl_baseline]"],
        "opd.objective.k",
        0,
        "needs k >= 1",
        "opd.objective.k=16",
    ),
    "k negative": (["opd.objective.k=-1"], "opd.objective.k", -1, "needs k >= 1", "opd.objective.k=16"),
    "support without its loss": (
        ["opd.objective.support=student_topk"],
        LOSS_MODE,
        "opd",
        "needs opd_none",
        f"{LOSS_MODE}=opd_none",
    ),
    "verl's loss": ([f"{LOSS_MODE}=vanilla"], LOSS_MODE, "vanilla", "needs opd", f"{LOSS_MODE}=opd"),
    "unknown hook": (["opd.rewards=[nope]"], "opd.rewards", "nope", "there are: reverse_kl", "opd.plugins"),
    "no hook": (["opd.rewards=[]"], "opd.rewards", [], "nothing to learn from", "opd.rewards=[reverse_kl]"),
    "no plugin module": (
        ["opd.plugins=[no_such_module]"],
        "opd.plugins",
        "no_such_module",
        "No module named",
        "PYTHONPATH",
    ),
    "kl in reward": (
        ["algorithm.use_kl_in_reward=true"],
        "algorithm.use_kl_in_reward",
        True,
        "needs False",
        "drop the override",
    ),
    "fused kernels": (
        ["actor_rollout_ref.model.use_fused_kernels=true"],
        "actor_rollout_ref.model.use_fused_kernels",
        True,
        "needs False",
        "drop the override",
    ),
    "other estimator": (
        ["algorithm.adv_estimator=grpo"],
        "algorithm.adv_estimator",
        "grpo",
        "recipe=opd needs opd",
        "recipe=grpo",
    ),
    "other trainer": (["trainer.v1.trainer_mode=sync"], "trainer.v1.trainer_mode", "sync", "needs opd", "drop"),
    "old trainer": (["trainer.use_v1=false"], "trainer.use_v1", False, "needs True", "drop the override"),
    "other engine": (["model_engine=megatron"], "model_engine", "megatron", "needs dp", "drop the override"),
    "verl's distillation": (["distillation.enabled=true"], "distillation.enabled", True, "needs False", "drop"),
    "bypass": (
        ["algorithm.rollout_correction.bypass_mode=true"],
        "algorithm.rollout_correction.bypass_mode",
        True,
        "not available",
        "algorithm.rollout_correction.bypass_mode=null",
    ),
    "importance weights": (
        ["algorithm.rollout_correction.rollout_is=token"],
        "algorithm.rollout_correction.rollout_is",
        "token",
        "not available",
        "algorithm.rollout_correction.rollout_is=null",
    ),
    "no training data": (
        ["data.train_files=[@prompts,@nope.parquet]"],
        "data.train_files",
        "@nope.parquet",
        "no such file",
        "data.train_files=/path/to",
    ),
    "prompts without the column that verl's reward manager reads": (
        ["data.train_files=@bare.parquet"],
        "data.train_files",
        "@bare.parquet",
        "no column 'reward_model'",
        "ground_truth",
    ),
    "nucleus sampling": (
        ["actor_rollout_ref.rollout.top_p=0.9"],
        "actor_rollout_ref.rollout.top_p",
        0.9,
        "truncated distribution",
        "actor_rollout_ref.rollout.top_p=1.0",
    ),
    "top-k sampling": (
        ["actor_rollout_ref.rollout.top_k=50"],
        "actor_rollout_ref.rollout.top_k",
        50,
        "truncated distribution",
        "actor_rollout_ref.rollout.top_k=-1",
    ),
    "no validation data": (["data.val_files=null"], "data.val_files", None, "no such file", "data.val_files=/path/to"),
    "other machine": (
        OTHER_MACHINE,
        "trainer.device",
        "cuda" if cpu_selected() else "cpu",
        "this ",
        "cluster=cpu",
    ),
    "teacher's dtype": (
        ["opd.teacher.dtype=float16"],
        "opd.teacher.dtype",
        "float16",
        "bfloat16",
        "opd.teacher.dtype=",
    ),
    "no replicas": (
        ["opd.teacher.n_gpus_per_node=0"],
        "opd.teacher.n_gpus_per_node",
        0,
        "must be positive",
        "drop the override",
    ),
}
"""Every bad input that this project knows of: recipe=opd with one thing changed."""
REFUSED_TOPK: dict[str, tuple[list[str], str, Any, str, str]] = {
    "k 0 with a top-k support": (["opd.objective.k=0"], "opd.objective.k", 0, "needs k >= 1", "opd.objective.k=16"),
    "ulysses": ([f"{ACTOR}.fsdp_config.{SP}=2"], f"{ACTOR}.fsdp_config.{SP}", 2, "not gathered", f"{SP}=1"),
    "ulysses by its old key": ([f"{ACTOR}.{SP}=2"], f"{ACTOR}.{SP}", 2, "not gathered", f"{SP}=1"),
}
"""The same for recipe=opd_topk."""


def assert_names_it(message: str, files: Files, key: str, value: Any, problem: str, remedy: str) -> None:
    """The message is one line `key=value: problem. Remedy: remedy.`."""
    value = value.replace("@", f"{files.root}/") if isinstance(value, str) else value
    assert message.startswith(f"{key}={value!r}: ")
    before, _, after = message.partition(". Remedy: ")
    assert problem in before and remedy in after
    assert "\n" not in message and message.endswith(".")


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_setting_is_refused(files: Files, case: str) -> None:
    changes, *expected = REFUSED[case]
    with pytest.raises(ConfigError) as refused:
        preflight(files.config(*changes))
    assert_names_it(str(refused.value), files, *expected)
    assert refused.value.key == expected[0]


@pytest.mark.parametrize("case", REFUSED_TOPK)
def test_a_bad_setting_of_the_topk_recipe_is_refused(files: Files, case: str) -> None:
    changes, *expected = REFUSED_TOPK[case]
    with pytest.raises(ConfigError) as refused:
        preflight(files.config(*changes, recipe="opd_topk"))
    assert_names_it(str(refused.value), files, *expected)


@pytest.mark.parametrize("recipe", ["opd", "opd_topk"])
@pytest.mark.parametrize(
    "changes",
    [
        [],
        [f"{STUDENT}=@student_120", f"{TEACHER}=@teacher_104"],
        [f"{STUDENT}=@teacher_104", f"{TEACHER}=@student_120"],
        [f"{TEACHER}=@no_tokenizer", "opd.teacher.tokenizer_path=@student"],
        ["opd.objective.k=96"],
        ["data.max_response_length=112"],
        ["actor_rollout_ref.rollout.temperature=0.8"],
        ["algorithm.rollout_correction=null"],
        ["opd.rewards=[reverse_kl,reverse_kl_baseline]", "opd.objective.k=4"],
    ],
    ids=lambda changes: " ".join(changes) or "as the recipe has it",
)
def test_a_run_that_can_work_is_accepted(files: Files, recipe: str, changes: list[str]) -> None:
    preflight(files.config(*changes, recipe=recipe))


def test_without_a_recipe_the_section_is_missed() -> None:
    with pytest.raises(ConfigError, match="start from a recipe: `recipe=opd`"):
        preflight(compose_ppo())


def test_hydra_swallows_exceptions_of_callbacks_but_not_ours(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: DictConfig, opd: OpdConfig) -> None:
        raise KeyError("a bug of ours")

    config = compose_ppo(*files.overrides(), with_hydra=True)
    callbacks = Callbacks(OmegaConf.masked_copy(config, ["hydra"]))
    assert [type(callback) for callback in callbacks.callbacks].count(Preflight) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what Hydra makes of an exception
        callbacks.on_job_start(config, task_function=lambda config: None)
        monkeypatch.setattr(module.settings, "CHECKS", (broken,))
        with pytest.raises(SystemExit) as ended:
            callbacks.on_job_start(config, task_function=lambda config: None)
    assert "a bug of ours" in str(ended.value.code), "a string code prints and exits with 1"


COMMAND_CASES = ["no teacher folder", "teacher unset", "unknown key", "other tokenizer", "other machine"]


def assert_refused_in_time(done: Finished) -> str:
    """Returns the last line of stderr. CPU time, not time on the wall: the machine may be busy."""
    assert done.code != 0 and not done.ray_started
    assert done.cpu_seconds < 10, f"{done.cpu_seconds:.1f} s"
    return done.err.splitlines()[-1]


@pytest.mark.parametrize("case", COMMAND_CASES)
def test_the_real_command_ends_with_the_message(files: Files, tmp_path: Path, case: str) -> None:
    changes, *expected = REFUSED[case]
    done = run_main(tmp_path, *files.overrides(*changes))
    message = assert_refused_in_time(done)
    assert message.startswith("opd_verl: ")
    assert_names_it(message.removeprefix("opd_verl: "), files, *expected)
    assert "Traceback" not in done.err


def test_an_unexpected_error_in_the_checks_ends_the_real_command(files: Files, tmp_path: Path) -> None:
    (tmp_path / "broken_hooks.py").write_text("raise RuntimeError('planted in broken_hooks')\n")
    done = run_main(tmp_path, *files.overrides("opd.plugins=[broken_hooks]"), PYTHONPATH=str(tmp_path))
    assert "planted in broken_hooks" in assert_refused_in_time(done)
    assert 'File "' in done.err, "an error that nobody foresaw keeps its trace"


def test_a_users_plugin_registers_its_hook_before_the_hooks_are_checked(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "hooks_of_a_test_user"
    code = f"from opd_verl.hooks import register_reward\nregister_reward('{name}')(lambda inputs: inputs.log_q)\n"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    preflight(files.config(f"opd.plugins=[{name}]", f"opd.rewards=[{name}]"))
    sys.modules.pop(name)
    from opd_verl.hooks import REWARD_HOOKS

    REWARD_HOOKS.pop(name)


def test_a_hub_name_without_a_network_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from opd_verl.checks import models

    monkeypatch.setattr(models, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens on the discard port
    monkeypatch.setattr(models, "HF_HUB_OFFLINE", False)
    with pytest.raises(ConfigError, match=r"opd\.teacher\.path='models/typo'.*cannot reach 127\.0\.0\.1"):
        models.load_config("opd.teacher.path", "models/typo", trust_remote_code=False)
