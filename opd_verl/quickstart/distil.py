"""Runs verl's own `main_ppo` as a child process, its noise in a file, its steps on a progress bar."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm
from transformers import AutoTokenizer

from opd_verl.hydra_values import hydra_value
from opd_verl.quickstart.evaluate import RESPONSE_LIMIT
from opd_verl.quickstart.paths import Paths

STEPS = 60
PROMPT_LIMIT = 64
POLL_SECONDS = 0.5
TAIL_LINES = 30


def overrides(paths: Paths, recipe: str, steps: int, seed: int) -> list[str]:
    """The command line after `python -m verl.trainer.main_ppo`: the recipe, the machine, and the toy's own sizes.

    The recipe's learning rate is for models of billions of parameters; these have less than one. Its k = 16 would leave
    0.3% of every token's probability untrained; the toy's whole vocabulary costs nothing.
    """
    teacher = []
    if recipe != "grpo":
        teacher = [f"opd.teacher.path={hydra_value(paths.teacher)}", "opd.seed_rollouts=true"]
    if recipe == "opd_topk":
        teacher.append(f"opd.objective.k={len(AutoTokenizer.from_pretrained(paths.student))}")
    return [
        f"recipe={recipe}",
        "cluster=cpu",
        *teacher,
        f"actor_rollout_ref.model.path={hydra_value(paths.student)}",
        f"data.train_files={hydra_value(paths.data / 'train.parquet')}",
        f"data.val_files={hydra_value(paths.data / 'heldout.parquet')}",
        f"data.max_prompt_length={PROMPT_LIMIT}",
        f"data.max_response_length={RESPONSE_LIMIT}",
        "data.train_batch_size=128",
        f"data.seed={seed}",
        f"actor_rollout_ref.rollout.seed={seed}",
        f"actor_rollout_ref.rollout.n={8 if recipe.endswith('grpo') else 1}",
        "actor_rollout_ref.actor.ppo_mini_batch_size=32",
        "actor_rollout_ref.actor.optim.lr=3e-4",
        "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=1000",
        f"trainer.save_freq={steps}",
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir={hydra_value(paths.checkpoints)}",
        "trainer.val_before_train=false",
        f"trainer.experiment_name={paths.root.name}",
        "trainer.logger=[console,file]",
    ]


def distil(paths: Paths, recipe: str, steps: int, seed: int, extra: Sequence[str] = ()) -> list[dict[str, float]]:
    """One run of `main_ppo`; returns the metrics of every step.

    Raises:
        SystemExit: the run failed; the message holds the end of its log and the log's path.
    """
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides(paths, recipe, steps, seed), *extra]
    print(f"$ {shlex.join(['python', *command[1:]])}\n  log: {paths.log}", flush=True)
    shutil.rmtree(paths.checkpoints, ignore_errors=True)
    paths.run.mkdir(parents=True, exist_ok=True)
    for stale in (paths.metrics, paths.table, paths.picture):
        stale.unlink(missing_ok=True)
    environment = os.environ | {"VERL_FILE_LOGGER_PATH": str(paths.metrics)}
    with paths.log.open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            found = follow(run, paths.metrics, steps, recipe)
        finally:
            run.terminate()
            run.wait()
    if run.returncode != 0 or len(found) < steps:
        tail = "\n".join(paths.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise SystemExit(f"{tail}\n\nmain_ppo stopped with code {run.returncode}; the whole log: {paths.log}")
    return found


def follow(run: "subprocess.Popen[bytes]", metrics: Path, steps: int, label: str) -> list[dict[str, float]]:
    """Shows the run's steps on a progress bar until it ends; returns their metrics."""
    found: list[dict[str, float]] = []
    started = time.monotonic()
    with tqdm(total=steps, desc=f"{label}: starting Ray, FSDP2, vLLM and the teacher") as bar:
        while True:
            ended = run.poll() is not None
            for step in new_steps(metrics, len(found)):
                found.append(step)
                bar.set_description(label)
                bar.set_postfix(reverse_kl=f"{step.get('opd/reverse_kl', float('nan')):.3f}")
                bar.update()
            if ended:
                return found
            if not found:
                bar.set_postfix(seconds=int(time.monotonic() - started))
            time.sleep(POLL_SECONDS)


def new_steps(metrics: Path, known: int) -> Iterator[dict[str, float]]:
    """Steps that the `file` logger has written beyond the first `known`; a line still being written is left alone."""
    if not metrics.exists():
        return
    for line in metrics.read_text().splitlines(keepends=True)[known:]:
        if line.endswith("\n"):
            record = json.loads(line)
            yield {"step": record["step"], **record["data"]}
