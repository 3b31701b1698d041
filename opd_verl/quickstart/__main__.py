"""Makes a teacher and a weaker student, distils the student, and shows a table, a picture and a report.

    python -m opd_verl.quickstart --seed 1

Everything is real and small: Qwen3 models, a trained tokenizer with a chat template, verl's `main_ppo`, Ray, FSDP2,
vLLM and the teacher actors. `bash launch/quickstart.sh` makes the environment and runs this command in it.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from opd_verl.config.compose import compose_trainer
from opd_verl.quickstart.distil import STEPS, distil
from opd_verl.quickstart.evaluate import distance, grade, sample
from opd_verl.quickstart.models import load_model
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.prepare import check_contract, eval_problems, prepare
from opd_verl.quickstart.report import ModelResult, QuickstartResult, draw_curves, print_table, write_json
from opd_verl.report.page import PAGE, write_report
from opd_verl.report.read import read_runs

EVAL_SAMPLES = 8
SHOWN_ROLLOUTS = 6
RECIPES = ("opd_topk", "opd", "opd_full", "eopd", "opd_grpo", "grpo")


def measure(model: Qwen3ForCausalLM, teacher: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> ModelResult:
    """Measures a model on the held-out problems: avg@8 at temperature 1, greedy accuracy, distance from the teacher."""
    problems = eval_problems()
    rollouts = sample(model, tokenizer, problems, samples=EVAL_SAMPLES)
    sampled = grade(rollouts, tokenizer, problems)
    greedy = grade(sample(model, tokenizer, problems, greedy=True), tokenizer, problems)
    apart = distance(model, teacher, rollouts, len(tokenizer))
    return ModelResult(sampled.accuracy, greedy.accuracy, sampled.mean_length, apart.reverse_kl, apart.overlap)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line; an argument that is no option goes to `main_ppo` as a Hydra override."""
    parser = argparse.ArgumentParser(
        prog="python -m opd_verl.quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the models, the data and the rollouts")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps")
    parser.add_argument("--recipe", choices=RECIPES, default=RECIPES[0], help="recipe of the training")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the run's files")
    return parser.parse_known_args()


def main() -> None:
    """Prepares, distils, measures and reports."""
    options, extra = parse_arguments()
    disable_progress_bar()  # models this small load before transformers' bar is drawn
    started, console = time.monotonic(), Console()
    torch.set_num_threads(os.cpu_count() or 1)
    if extra:  # refuses a misspelt override now, not after the models have been trained
        compose_trainer([f"recipe={options.recipe}", "cluster=local_cpu", *extra])
    paths = Paths((options.out / f"seed{options.seed}").absolute(), options.recipe)
    tokenizer = prepare(paths, options.seed)
    teacher = load_model(paths.teacher)
    with console.status("measuring the teacher and the student on held-out problems"):
        before, best = (measure(model, teacher, tokenizer) for model in (load_model(paths.student), teacher))
    check_contract(before.accuracy, best.accuracy)
    steps = distil(paths, options.recipe, options.steps, options.seed, extra)
    with console.status("measuring the distilled student"):
        after = measure(load_model(paths.distilled(options.steps)), teacher, tokenizer)
    seconds = time.monotonic() - started
    result = QuickstartResult(options.recipe, options.seed, options.steps, before, after, best, seconds)
    print_table(result, console)
    write_json(result, paths.table)
    draw_curves(steps, result, paths.picture)
    with console.status("drawing the report"):
        write_report(read_runs([paths.run], SHOWN_ROLLOUTS), paths.report)
    console.print(f"curves: {paths.picture}\nreport: {paths.report / PAGE}")
    console.print(f"model:  {paths.distilled(options.steps)}\nlog:    {paths.log}")


if __name__ == "__main__":
    main()
