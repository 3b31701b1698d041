"""Runs verl's own `main_ppo` on the quickstart's models."""

import shlex
import shutil
import sys
from collections.abc import Sequence

from transformers import AutoTokenizer

from opd_verl.config.overrides import hydra_value
from opd_verl.pipeline.training_child import run_child
from opd_verl.quickstart.evaluate import RESPONSE_LIMIT
from opd_verl.quickstart.paths import Paths
from opd_verl.tracking.metrics_file import read_steps
from opd_verl.utils.files import tail

STEPS = 60
PROMPT_LIMIT = 64


def overrides(paths: Paths, recipe: str, steps: int, seed: int) -> list[str]:
    """Returns the arguments of `python -m verl.trainer.main_ppo`: the recipe, the machine, and sizes for this task.

    The learning rate is 3e-4: the recipe's rate is for models of billions of parameters; these have under a million.
    k is the whole vocabulary: the recipe's 16 ids would leave 0.3% of every token's probability untrained, and all 301
    ids cost nothing.
    """
    teacher = []
    if recipe != "grpo":
        teacher = [f"opd.teacher.path={hydra_value(paths.teacher)}", "opd.seed_rollouts=true"]
    if recipe == "opd_topk":
        teacher.append(f"opd.objective.k={len(AutoTokenizer.from_pretrained(paths.student))}")
    return [
        f"recipe={recipe}",
        "cluster=local_cpu",
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
    """Runs `main_ppo` once. Returns the metrics of every step.

    Raises:
        SystemExit: the run failed; the message holds the end of its log and the log's path.
    """
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides(paths, recipe, steps, seed), *extra]
    print(f"$ {shlex.join(['python', *command[1:]])}\n  log: {paths.log}", flush=True)
    shutil.rmtree(paths.checkpoints, ignore_errors=True)
    paths.run.mkdir(parents=True, exist_ok=True)
    for stale in (paths.log, paths.metrics, paths.table, paths.picture):
        stale.unlink(missing_ok=True)
    run_child(command, paths.log, paths.metrics, recipe, total=steps)
    made = list(read_steps(paths.metrics))
    if len(made) < steps:
        raise SystemExit(f"{tail(paths.log)}\n\nmain_ppo ended after {len(made)} of {steps} steps; log: {paths.log}")
    return made
