"""Model folders and data files that a run's checks read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig
from recipes_harness import compose_ppo
from tiny_models import save_tiny_qwen3, tiny_tokenizer
from transformers import AutoConfig

from opd_verl.cpu.selected import cpu_selected

VOCAB, CONTEXT = 96, 128

MACHINE = ["cluster=local_cpu"] if cpu_selected() else []

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
        good += ["opd.context.max_tokens=32"] if recipe == "opsd" else []
        return [item.replace("@", f"{self.root}/") for item in (*good, *changes)]

    def config(self, *changes: str, recipe: str = "opd") -> DictConfig:
        return compose_ppo(*self.overrides(*changes, recipe=recipe))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = Files(tmp_path_factory.mktemp("models"))
    save_tiny_qwen3(made.root / "student", VOCAB, seed=0)
    save_tiny_qwen3(made.root / "teacher", VOCAB, seed=1)
    for name, rows in (("student_120", 120), ("teacher_104", 104), ("too_few_rows", VOCAB - 8)):
        save_config(made.root / name, vocab_size=rows)
    save_config(made.root / "short_context", max_position_embeddings=70)
    save_config(made.root / "softcapped", final_logit_softcapping=30.0)
    save_config(made.root / "scaled", logits_scaling=8.0)
    save_config(made.root / "not_scaled", logits_scaling=1.0)
    save_config(made.root / "other_tokenizer", tokenizer=tiny_tokenizer(VOCAB - 1))
    other_eos = tiny_tokenizer(VOCAB)
    other_eos.eos_token = "w2"
    save_config(made.root / "other_eos", tokenizer=other_eos)
    save_config(made.root / "no_tokenizer").joinpath("tokenizer.json").unlink()
    (made.root / "no_tokenizer" / "tokenizer_config.json").unlink()
    (made.root / "empty").mkdir()
    (made.root / "prompts").touch()
    pq.write_table(
        pa.table({"prompt": [[{"role": "user", "content": "?"}]], "data_source": ["d"]}), made.root / "bare.parquet"
    )
    return made


def save_config(folder: Path, tokenizer: Any = None, **changes: float) -> Path:
    """A model folder without weights: the checks read none."""
    config = AutoConfig.for_model(
        "qwen3", **{"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "hidden_size": 32} | changes
    )
    config.save_pretrained(folder)
    (tokenizer or tiny_tokenizer(VOCAB)).save_pretrained(folder)
    return folder


SILENT = f"{LOSS_MODE}=opd_none"


def assert_names_it(message: str, files: Files, key: str, value: Any, problem: str, remedy: str) -> None:
    """The message is one line `key=value: problem. Remedy: remedy.`."""
    value = value.replace("@", f"{files.root}/") if isinstance(value, str) else value
    assert message.startswith(f"{key}={value!r}: ")
    before, _, after = message.partition(". Remedy: ")
    assert problem in before and remedy in after
    assert "\n" not in message and message.endswith(".")
