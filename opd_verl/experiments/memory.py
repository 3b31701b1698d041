"""Compares the planner's memory model with measured peaks, on CPU runs of the real main_ppo.

    python -m opd_verl.experiments.memory --out memory

Makes two runs of two steps with random weights, a small pair of models and a large pair, otherwise equal. Measures
the high-water mark of each process (VmHWM). The difference of the two runs, in which interpreter, libraries and caches
cancel out, is compared with the planned difference of the role's largest phase.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from opd_verl.config.compose import compose_trainer
from opd_verl.pipeline.training_child import die_with_parent
from opd_verl.plan import memory
from opd_verl.plan.devices import GIB
from opd_verl.plan.phases import phases
from opd_verl.plan.planner import plan_run
from opd_verl.quickstart.distil import overrides
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.task import write_parquet
from opd_verl.quickstart.tokenizer import build_tokenizer
from opd_verl.utils.files import tail
from opd_verl.utils.markdown import markdown_table

ROLES = {"trainer": r"ray::\w*WorkerDict", "rollout server": r"VLLM::", "teacher": r"ray::TeacherActor"}
"""Pattern of the process title of each role, as Ray and vLLM set it."""
SIZES = {
    "small": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 512},
    "large": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 16384},
}
SERVER = (memory.WEIGHTS, memory.CACHE, memory.ROLLOUT)
"""Parts of the plan that belong to the rollout server: on a CPU it is a process of its own."""
PAUSE_SECONDS = 0.2
"""Pause between two looks at the processes: VmHWM is lost when a process ends."""
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def write_model(folder: Path, tokenizer: Path, sizes: Mapping[str, int]) -> None:
    """Writes a Qwen3 of these sizes with random weights, and the quickstart's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    heads = sizes["hidden_size"] // 64
    config = AutoConfig.for_model(
        "qwen3",
        **sizes,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        tie_word_embeddings=False,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def prepare(root: Path) -> Paths:
    """Makes the models and data of one run."""
    paths = Paths(root)
    write_parquet(paths.data, 256, 8, seed=0)
    build_tokenizer(root / "tokenizer")
    for folder in (paths.student, paths.teacher):
        write_model(folder, root / "tokenizer", SIZES[root.name])
    return paths


def settings(paths: Paths, recipe: str, extra: Sequence[str]) -> list[str]:
    """Returns the overrides of a run of two steps without checkpoints."""
    return [*overrides(paths, recipe, 2, 0), "trainer.save_freq=-1", "trainer.logger=[console]", *extra]


def peaks(root: int) -> dict[str, int]:
    """Returns the largest high-water mark of each role among the descendants of a process, bytes."""
    marks: dict[str, int] = {}
    for process in psutil.Process(root).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue
        role = next((name for name, pattern in ROLES.items() if re.match(pattern, title)), None)
        peak = PEAK.search(status)
        if role and peak:
            marks[role] = max(marks.get(role, 0), 1024 * int(peak[1]))
    return marks


def measure(command: Sequence[str], log: Path) -> dict[str, int]:
    """Runs a command to its end. Returns the largest high-water mark of each role, bytes.

    Raises:
        SystemExit: the command failed; the message holds the end of its log.
    """
    marks: dict[str, int] = {}
    with log.open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=die_with_parent)
        while child.poll() is None:
            for role, peak in peaks(child.pid).items():
                marks[role] = max(marks.get(role, 0), peak)
            time.sleep(PAUSE_SECONDS)
    if child.returncode:
        raise SystemExit(f"{tail(log, 40)}\n\nmain_ppo failed; the whole log: {log}")
    return marks


def planned(arguments: Sequence[str]) -> dict[str, float]:
    """Returns the planned bytes of each role's largest phase."""
    run = plan_run(compose_trainer(list(arguments)), "h100")
    parts_of = phases(run)
    own = {name: {part: size for part, size in parts.items() if part not in SERVER} for name, parts in parts_of.items()}
    return {
        "trainer": max(memory.total(own["update"]), memory.total(own["log-probs"])),
        "rollout server": parts_of["rollout"][memory.WEIGHTS],
        "teacher": memory.total(own["teacher"]) - own["teacher"].get(memory.STATES, 0.0),
    }


def table(growth: Mapping[str, float], expected: Mapping[str, float]) -> str:
    """Returns planned growth, measured growth and the plan's error as Markdown."""
    lines = [
        [
            role,
            f"{expected[role] / GIB:.3f}",
            f"{growth[role] / GIB:.3f}",
            f"{(expected[role] - growth[role]) / growth[role]:+.0%}",
        ]
        for role in ROLES
    ]
    return markdown_table(["role", "planned, GiB", "measured, GiB", "error"], lines)


def main() -> None:
    """Makes both runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("memory"))
    parser.add_argument("--recipe", default="opd")
    parser.add_argument("overrides", nargs="*", help="overrides of both runs")
    options = parser.parse_args()
    measured, expected = {}, {}
    for size in SIZES:
        paths = prepare(options.out.absolute() / size)
        arguments = settings(paths, options.recipe, options.overrides)
        expected[size] = planned(arguments)
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments]
        measured[size] = measure(command, options.out / f"{size}.log")
        print(size, {role: f"{peak / GIB:.3f} GiB" for role, peak in measured[size].items()}, flush=True)
    differences = [{role: both["large"][role] - both["small"][role] for role in ROLES} for both in (measured, expected)]
    print(table(*differences))


if __name__ == "__main__":
    main()
