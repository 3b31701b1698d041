"""Settings of the end-to-end runs, and how their outcomes are read and compared.

Two kinds of assertions must hold on every machine, since float32 sums in another order on another processor:

* The outcome of a training: its comment holds the measured range over seeds and over other arithmetic
  (`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA`, threads), and the bound lies more than 3.1 standard deviations from the
  mean (below 1 in 1,000). `recipes/LOG.md`, 2026-11-28, has the study.
* The equality of two runs (`SAME`): both run on the same machine. Its docstring says what may differ, and by how much.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer

from opd_verl.metrics.names import CONDITIONAL
from opd_verl.quickstart.evaluate import distance, sample
from opd_verl.quickstart.models import load_model
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.prepare import eval_problems
from opd_verl.tracking.metrics_log import logged

Steps = list[dict[str, float]]
Run = Callable[..., Steps]
SAMPLED_STEPS = 9
SMALL = (
    "data.train_batch_size=64",
    "actor_rollout_ref.actor.ppo_mini_batch_size=16",
    "actor_rollout_ref.actor.optim.lr_scheduler_type=constant",  # a shorter run is the beginning of a longer one
)
SAMPLED = (*SMALL, "actor_rollout_ref.actor.optim.lr=1e-4")
"""The sampled token's r_t is noisy: a third of the exact objective's learning rate."""
ALONE = "opd.teacher.max_tokens_per_batch=1"
"""The teacher scores each rollout in a forward pass of its own, for runs that are compared with one another.

Else its batches hold whatever has arrived, and a rollout's r_t differs by float32's 1e-7 from batch to batch. Adam
turned this into 3e-4 within five steps; a draw then falls on another token once in a while, and the step's mean r_t
differs by percents.
"""
SAME: dict[str, float] = {"rel": 1e-4, "abs": 1e-7}
"""Tolerance between two runs of one seed on one machine, the teacher's batches being the same (`ALONE`).

Measured over six steps of 4 updates each, with restarted replicas and 34 to 68 rollouts asked again per step: equal to
the last digit. Only a matrix product that sums in another order from call to call could differ, by float32's 1e-7; a
lost optimizer state or another seed is percents.
"""
COMPARED = ("actor/loss", "actor/grad_norm", "opd/reverse_kl", "opd/reward_mean", "critic/score/mean")
CONDITIONAL_NAMES = set(CONDITIONAL)
PATTERNS = {name: re.compile(re.sub(r"<[a-z]+>", r"\\w+", name)) for name in CONDITIONAL if "<" in name}


def copy_checkpoint(source: Path, step: int, to: Path) -> None:
    """Puts a run where it was killed, with this newest checkpoint, for `trainer.resume_mode=auto` to go on from."""
    shutil.copytree(source / f"global_step_{step}", to / f"global_step_{step}")
    for kept in ("metrics.jsonl", "wandb_run_id"):
        shutil.copy(source / kept, to / kept)
    (to / "latest_checkpointed_iteration.txt").write_text(str(step))


def metrics_of(folder: Path) -> Steps:
    """The logged steps of the run in this `trainer.default_local_dir`, over all attempts."""
    return logged(folder)


def updates(checkpoint: Path) -> set[int]:
    """How often Adam has updated the actor's parameters."""
    optimizer = torch.load(checkpoint / "actor" / "optim_world_size_1_rank_0.pt", weights_only=False)
    return {int(state["step"]) for state in optimizer["state"].values()}


def dump(steps: Steps, key: str) -> str:
    """One metric of all steps, for a failure's message."""
    return json.dumps([round(step[key], 6) for step in steps])


def new_metrics(steps: Steps) -> set[str]:
    """The metrics that opd_verl added to verl's, as the documents name them: `opd/depth/<first>-<last>/reward`."""
    ours = {key for step in steps for key in step if "opd/" in key or "_s/teacher" in key or "_s/diagnostics" in key}
    return {next((name for name, pattern in PATTERNS.items() if pattern.fullmatch(key)), key) for key in ours}


def change(steps: Steps, key: str, over: int = 3) -> float:
    """Relative change of a metric from the mean of the first `over` steps to that of the last ones."""
    first, last = (sum(step[key] for step in part) / over for part in (steps[:over], steps[-over:]))
    print(f"{key}: {dump(steps, key)}")
    return (last - first) / abs(first)


def exact_reverse_kl(student: Path, models: Paths) -> float:
    """KL(student || teacher) over the whole vocabulary on the student's own responses, nats per token.

    200 held-out problems, 4 responses each, about 27,000 tokens. The mean of one training step's sampled r_t (2,000
    tokens) is known to 15% only, this to 2%.
    """
    torch.set_num_threads(1)  # at this size a second thread waits more than it works, 60 s more on a busy machine
    tokenizer = AutoTokenizer.from_pretrained(models.teacher)
    model, teacher = load_model(student), load_model(models.teacher)
    return distance(model, teacher, sample(model, tokenizer, eval_problems(), samples=4), len(tokenizer)).reverse_kl
