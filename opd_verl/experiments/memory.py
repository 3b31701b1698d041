"""The planner's memory model against measured peaks, on CPU runs of the real main_ppo.

    python -m opd_verl.experiments.memory --out memory

Two runs of two steps with models of random weights, a small pair and a large one, alike in all else. Measured is each
process's high-water mark (VmHWM); compared are the differences between the two runs, in which interpreter, libraries
and caches cancel out. What a role's largest phase is planned to take must be what its process grew by.
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
from opd_verl.plan.__main__ import plan
from opd_verl.plan.devices import GIB
from opd_verl.plan.phases import phases
from opd_verl.quickstart.distil import overrides
from opd_verl.quickstart.paths import Paths
from opd_verl.quickstart.task import write_parquet
from opd_verl.quickstart.tokenizer import build_tokenizer
from opd_verl.utils.files import tail
from opd_verl.utils.markdown import markdown_table

ROLES = {"trainer": r"ray::\w*WorkerDict", "rollout server": r"VLLM::", "teacher": r"ray::TeacherActor"}
"""What Ray calls the process of each role."""
SIZES = {
    "small": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 512},
    "large": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 16384},
}
SERVER = (memory.WEIGHTS, memory.CACHE, memory.ROLLOUT)
"""Parts of a rollout server, which has a process of its own on the CPU."""
PAUSE_SECONDS = 0.2
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def write_model(folder: Path, tokenizer: Path, sizes: Mapping[str, int]) -> None:
    """A Qwen3 of these sizes with random weights, and the toy's tokenizer."""
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
    """Models and data of one run."""
    paths = Paths(root)
    write_parquet(paths.data, 256, 8, seed=0)
    build_tokenizer(root / "tokenizer")
    for folder in (paths.student, paths.teacher):
        write_model(folder, root / "tokenizer", SIZES[root.name])
    return paths


def settings(paths: Paths, recipe: str, extra: Sequence[str]) -> list[str]:
    """Two steps; responses of any length, since random weights do not end one."""
    return [*overrides(paths, recipe, 2, 0), "trainer.save_freq=-1", "trainer.logger=[console]", *extra]


def peaks(root: int) -> dict[str, int]:
    """High-water marks of the roles' processes among a process's descendants, bytes; the largest of each role."""
    found: dict[str, int] = {}
    for process in psutil.Process(root).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue
        role = next((name for name, pattern in ROLES.items() if re.match(pattern, title)), None)
        peak = PEAK.search(status)
        if role and peak:
            found[role] = max(found.get(role, 0), 1024 * int(peak[1]))
    return found


def measure(command: Sequence[str], log: Path) -> dict[str, int]:
    """Runs it to its end and returns the highest mark of each role.

    Raises:
        SystemExit: it failed; the message holds the end of its log.
    """
    found: dict[str, int] = {}
    with log.open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=die_with_parent)
        while child.poll() is None:
            for role, peak in peaks(child.pid).items():
                found[role] = max(found.get(role, 0), peak)
            time.sleep(PAUSE_SECONDS)
    if child.returncode:
        raise SystemExit(f"{tail(log, 40)}\n\nmain_ppo failed; the whole log: {log}")
    return found


def planned(arguments: Sequence[str]) -> dict[str, float]:
    """Bytes of each role's largest phase; a server on the CPU has a process of its own, with weights and cache."""
    run = plan(compose_trainer(list(arguments)), "h100")
    found = phases(run)
    own = {name: {part: size for part, size in parts.items() if part not in SERVER} for name, parts in found.items()}
    return {
        "trainer": max(memory.total(own["update"]), memory.total(own["log-probs"])),
        "rollout server": found["rollout"][memory.WEIGHTS],
        "teacher": memory.total(own["teacher"]) - own["teacher"].get(memory.STATES, 0.0),
    }


def table(growth: Mapping[str, float], expected: Mapping[str, float]) -> str:
    """Planned and measured growth, and the plan's error."""
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
    """Both runs, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("memory"))
    parser.add_argument("--recipe", default="opd")
    parser.add_argument("overrides", nargs="*", help="of both runs")
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
