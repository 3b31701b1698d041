"""Benchmark of the student step: forward and backward from hidden states and LM head to the gradients of both.

`python tests/benchmarks/student_step.py --out table.md`; README.md beside this file says how to read the table.
"""

import argparse
import json
import os
import re
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from step_inputs import Shape, errors, make_inputs, reference
from step_measure import interleaved, peak_in_child, peak_of
from step_table import Key, Results, markdown
from step_variants import FLOOR, VARIANTS

CHECK_TOKENS, CHECK_HIDDEN = 320, 128
"""Sizes of the comparison with float64: two chunks of rows on a CPU. The vocabulary is the run's own, since the error
of a float32 softmax grows with its length."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
"""Largest relative error that rounding explains; beyond it the variant computes another loss."""


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048], help="T of the timed steps")
    parser.add_argument("--memory-tokens", type=int, nargs="*", default=[1024, 4096], help="T of the peaks; none: skip")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--dtype", nargs="+", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds, after a first one that is dropped")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="file for the table, which is also printed")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--memory-child", choices=VARIANTS, metavar="NAME", help="print one variant's peak bytes")
    return parser.parse_args()


def shape_of(args: argparse.Namespace, tokens: int) -> Shape:
    """Returns the sizes of a step of `tokens` tokens."""
    return Shape(tokens, args.vocabulary, args.hidden, args.k)


def check(name: str, dtype: str, args: argparse.Namespace) -> tuple[float, float, float] | None:
    """Returns the relative errors against float64; None for a floor. Raises ValueError for another loss."""
    variant = VARIANTS[name]
    shape = Shape(CHECK_TOKENS, args.vocabulary, min(CHECK_HIDDEN, args.hidden), args.k)
    inputs = make_inputs(shape, getattr(torch, dtype), torch.device(args.device))
    outcome = variant.prepare(inputs)()
    if outcome is None:
        return None
    result = errors(outcome, reference(inputs, variant.group))
    if not max(result) <= TOLERANCE[dtype]:
        raise ValueError(f"{name} in {dtype}: relative errors of loss, dH, dW are {result}; not the same loss")
    return result


def time_all(results: Results, names: list[str], dtype: str, tokens: int, args: argparse.Namespace) -> None:
    """Times all variants on the same inputs, one group after another."""
    device = torch.device(args.device)
    inputs = make_inputs(shape_of(args, tokens), getattr(torch, dtype), device)
    for group in FLOOR:
        steps = {name: VARIANTS[name].prepare(inputs) for name in names if VARIANTS[name].group == group}
        for name, seconds in interleaved(steps, args.repeats, device).items():
            results.seconds[Key(name, dtype, tokens)] = seconds


def child_arguments(key: Key, args: argparse.Namespace) -> list[str]:
    """Returns the arguments of this script for one peak."""
    options = {
        "--memory-child": key.name,
        "--dtype": key.dtype,
        "--tokens": key.tokens,
        "--vocabulary": args.vocabulary,
        "--hidden": args.hidden,
        "--k": args.k,
        "--threads": args.threads,
        "--device": args.device,
    }
    return [__file__, *(str(part) for option in options.items() for part in option)]


def heading(args: argparse.Namespace) -> str:
    """Describes machine, versions and sizes."""
    cpu = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[0]
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu}, {args.threads} threads"
    packages = {package for name in args.only if VARIANTS[name].installed for package in VARIANTS[name].needs[:1]}
    versions = ", ".join(f"{package} {version(package)}" for package in sorted(packages | {"torch"}))
    sizes = f"H = {args.hidden}, V = {args.vocabulary}, k = {args.k}, {args.repeats} rounds"
    return f"# Student step\n\n{device}; load {os.getloadavg()[0]:.1f} at the start; {versions}; {sizes}."


def measure(args: argparse.Namespace) -> str:
    """Measures errors, then seconds, then peaks. Returns the report."""
    results, title = Results(), heading(args)
    results.missing.update(name for name in args.only if not VARIANTS[name].installed)
    names = [name for name in args.only if name not in results.missing]
    for name, dtype in product(names, args.dtype):
        if (relative := check(name, dtype, args)) is not None:
            results.errors[name, dtype] = relative
    for dtype, tokens in product(args.dtype, args.tokens):
        time_all(results, names, dtype, tokens, args)
    for dtype, tokens, name in product(args.dtype, args.memory_tokens, names):
        if name not in FLOOR.values():
            key = Key(name, dtype, tokens)
            results.peaks[key] = peak_in_child(child_arguments(key, args), args.threads)
    rows = product(args.dtype, sorted({*args.tokens, *args.memory_tokens}), args.only)
    return markdown(results, [Key(name, dtype, tokens) for dtype, tokens, name in rows], args.device, title)


def main() -> None:
    """Prints the report, or one peak with `--memory-child`."""
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.memory_child:
        shape = shape_of(args, args.tokens[0])
        dtype, device = getattr(torch, args.dtype[0]), torch.device(args.device)
        print(json.dumps(peak_of(VARIANTS[args.memory_child], shape, dtype, device)))
        return
    report = measure(args)
    print(report)
    if args.out:
        args.out.write_text(report)


if __name__ == "__main__":
    main()
