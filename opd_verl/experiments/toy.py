"""EOPD's toy experiment (section 3.2, Table 1, Appendix B): a sampled reverse KL with a peaked and a flat teacher.

    python -m opd_verl.experiments.toy                                            # Table 1 and Figures 1 and 6
    python -m opd_verl.experiments.toy --grid --steps 5000 --seeds 256            # how the defaults were found

Per step: sample x ~ P_S10, the student renormalised on its current top 10; `reward = log_q(x) - log_p10(x)`; then
`s_x += learning_rate * reward`, that logit alone. The paper gives neither steps, learning rate nor seeds.
Shapes: N seeds, T steps, V = 80 tokens. Log-probabilities in nats, float64 numpy, one random stream per seed.
"""

import argparse
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
VOCABULARY, TOP = 80, 10
MODES = (1.7, 1.9, 2.1, 2.3, 2.5)
STEPS, LEARNING_RATE, SEEDS = 620, 1.0, 256
GRID = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5)


@dataclass(frozen=True)
class Scenario:
    """One row of Table 1."""

    name: str
    temperature: float
    paper_mean: float
    """The paper's top-1 change count."""
    paper_std: float


SCENARIOS = (Scenario("A, low entropy", 0.3, 7.3, 1.6), Scenario("B, high entropy", 1.0, 84.0, 16.7))


class Reward(StrEnum):
    """Which distributions the reward compares; the paper's is `PAPER`."""

    PAPER = "paper"
    """Teacher on all tokens, student renormalised on its top 10; its mean is at most log(teacher's mass there) < 0."""
    FULL = "full"
    """Both on all tokens."""
    TOP = "top"
    """Both renormalised on the student's top 10."""


@dataclass(frozen=True)
class Draws:
    """All that is random; seed i gives row i whatever N is, and both scenarios share it."""

    z_NV: Floats
    """Teacher logits before the temperature."""
    s_NV: Floats
    """Initial student logits."""
    u_NT: Floats
    """Uniform numbers that pick the sampled token."""


@dataclass(frozen=True)
class Run:
    """One scenario, all seeds."""

    log_q_NV: Floats
    s_NV: Floats
    """Final student logits."""
    top1_changed_NT: Bools
    change_rate_NT: Floats
    """Jaccard distance between the top 10 before and after each step, 0 to 1."""


def log_softmax(x_NV: Floats) -> Floats:
    """Row-wise log-probabilities, nats; -inf stays -inf."""
    shifted_NV = x_NV - x_NV.max(axis=1, keepdims=True)
    return shifted_NV - np.log(np.exp(shifted_NV).sum(axis=1, keepdims=True))


def teacher_logits(rng: np.random.Generator) -> Floats:
    """[V] standard normal logits, five random ones overwritten with `MODES`."""
    z_V = rng.standard_normal(VOCABULARY)
    z_V[rng.choice(VOCABULARY, len(MODES), replace=False)] = MODES
    return z_V


def draw(seeds: int, steps: int) -> Draws:
    """Teachers, initial students and uniform numbers of seeds 0 to N-1."""
    rngs = [np.random.default_rng(seed) for seed in range(seeds)]
    z_NV = np.stack([teacher_logits(rng) for rng in rngs])
    s_NV = np.stack([rng.standard_normal(VOCABULARY) for rng in rngs])
    return Draws(z_NV, s_NV, np.stack([rng.random(steps) for rng in rngs]))


def top_mask(s_NV: Floats) -> Bools:
    """[N, V] True on each row's `TOP` largest logits."""
    return s_NV >= np.partition(s_NV, -TOP, axis=1)[:, -TOP, None]


def sample(log_p_NV: Floats, u_N: Floats) -> NDArray[np.intp]:
    """[N] token ids by the inverse of the cumulative distribution; a token of probability 0 is never chosen."""
    cumulative_NV = np.exp(log_p_NV).cumsum(axis=1)
    return (cumulative_NV <= u_N[:, None] * cumulative_NV[:, -1:]).sum(axis=1)


def jaccard_distance(before_NV: Bools, after_NV: Bools) -> Floats:
    """[N] `1 - |A ∩ B| / |A ∪ B|`, 0 to 1."""
    return 1 - (before_NV & after_NV).sum(axis=1) / (before_NV | after_NV).sum(axis=1)


def rewards(log_q_NV: Floats, s_NV: Floats, mask_NV: Bools, kind: Reward) -> tuple[Floats, Floats]:
    """([N, V] `log_q - log_p` in nats, `log_p10`), normalised as `kind` says; the reward holds on the mask only."""
    log_p10_NV = log_softmax(np.where(mask_NV, s_NV, -np.inf))
    if kind is Reward.TOP:
        log_q_NV = log_softmax(np.where(mask_NV, log_q_NV, -np.inf))
    log_p_NV = log_softmax(s_NV) if kind is Reward.FULL else log_p10_NV
    return np.subtract(log_q_NV, log_p_NV, where=mask_NV, out=np.zeros_like(s_NV)), log_p10_NV


def simulate(draws: Draws, temperature: float, learning_rate: float, kind: Reward = Reward.PAPER) -> Run:
    """Train every seed's student on one scenario, side by side, for T steps."""
    log_q_NV, s_NV, row_N = log_softmax(draws.z_NV / temperature), draws.s_NV.copy(), np.arange(len(draws.s_NV))
    mask_NV, best_N = top_mask(s_NV), s_NV.argmax(axis=1)
    changed_NT, rate_NT = np.zeros(draws.u_NT.shape, dtype=np.bool_), np.zeros(draws.u_NT.shape)
    for step, u_N in enumerate(draws.u_NT.T):
        reward_NV, log_p10_NV = rewards(log_q_NV, s_NV, mask_NV, kind)
        x_N = sample(log_p10_NV, u_N)
        s_NV[row_N, x_N] += learning_rate * reward_NV[row_N, x_N]
        old_mask_NV, old_best_N = mask_NV, best_N
        mask_NV, best_N = top_mask(s_NV), s_NV.argmax(axis=1)
        changed_NT[:, step] = best_N != old_best_N
        rate_NT[:, step] = jaccard_distance(old_mask_NV, mask_NV)
    return Run(log_q_NV, s_NV, changed_NT, rate_NT)


def simulate_all(draws: Draws, learning_rate: float, kind: Reward) -> list[Run]:
    """One run per entry of `SCENARIOS`."""
    return [simulate(draws, scenario.temperature, learning_rate, kind) for scenario in SCENARIOS]


def spread(counts_N: NDArray[np.int_]) -> str:
    """Mean +- sample standard deviation over seeds (nan for one seed)."""
    return f"{counts_N.mean():.1f} ± {counts_N.std(ddof=1) if len(counts_N) > 1 else float('nan'):.1f}"


def result_table(runs: list[Run], title: str) -> Table:
    """Table 1 with the paper's value beside ours, and the change rate at both ends of training."""
    table = Table("teacher", "T", "entropy, nats", "top-1 changes", "paper", "median", title=title)
    for column in ("top-10 change rate, first tenth", "last tenth"):
        table.add_column(column)
    for scenario, run in zip(SCENARIOS, runs, strict=True):
        counts_N, rate_T = run.top1_changed_NT.sum(axis=1), run.change_rate_NT.mean(axis=0)
        entropy = -(np.exp(run.log_q_NV) * run.log_q_NV).sum(axis=1).mean()
        tenth = max(1, len(rate_T) // 10)
        paper = f"{scenario.paper_mean} ± {scenario.paper_std}"
        numbers = (f"{np.median(counts_N):.0f}", f"{rate_T[:tenth].mean():.3f}", f"{rate_T[-tenth:].mean():.3f}")
        table.add_row(scenario.name, str(scenario.temperature), f"{entropy:.2f}", spread(counts_N), paper, *numbers)
    return table


def grid_row(runs: list[Run]) -> tuple[float, int, list[str]]:
    """(distance, steps, each scenario's count) at the number of steps closest to the paper.

    The distance is the larger of both scenarios' `|mean - paper mean| / paper std`.
    """
    counts = [run.top1_changed_NT.cumsum(axis=1) for run in runs]
    pairs = zip(SCENARIOS, counts, strict=True)
    distance_T = np.max([np.abs(c.mean(axis=0) - s.paper_mean) / s.paper_std for s, c in pairs], axis=0)
    best = int(distance_T.argmin())
    return float(distance_T[best]), best + 1, [spread(c[:, best]) for c in counts]


def grid_table(draws: Draws, kind: Reward) -> Table:
    """Per learning rate, the number of steps up to T at which both counts come closest to the paper's."""
    table = Table("learning rate", "steps", *(scenario.name for scenario in SCENARIOS), "distance, paper's σ")
    for learning_rate in GRID:
        distance, steps, counts = grid_row(simulate_all(draws, learning_rate, kind))
        table.add_row(str(learning_rate), str(steps), *counts, f"{distance:.2f}")
    return table


def draw_distributions(axes: Axes, run: Run, title: str) -> None:
    """Figure 6: seed 0's teacher, most likely token first, and its final student on its top 10."""
    order_V = run.log_q_NV[0].argsort()[::-1]
    log_p10_NV = log_softmax(np.where(top_mask(run.s_NV), run.s_NV, -np.inf))
    axes.bar(range(VOCABULARY), np.exp(run.log_q_NV[0, order_V]), color="tab:gray", label="teacher")
    axes.plot(range(VOCABULARY), np.exp(log_p10_NV[0, order_V]), ".", color="tab:red", label="student's top 10")
    axes.set(title=title, xlabel="token, by the teacher's probability", ylabel="probability")
    axes.legend()


def draw_figure(runs: list[Run], path: Path) -> None:
    """Figure 1 (top-10 change rate, mean over seeds and over a moving window of T/50 steps) and Figure 6, as a PNG."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    left, *right = figure.subplots(1, 1 + len(runs))
    for axes, scenario, run in zip(right, SCENARIOS, runs, strict=True):
        window = max(1, run.change_rate_NT.shape[1] // 50)
        left.plot(
            np.convolve(run.change_rate_NT.mean(axis=0), np.full(window, 1 / window), "valid"), label=scenario.name
        )
        draw_distributions(axes, run, f"{scenario.name}: seed 0")
    left.set(title="top-10 change rate", xlabel="step", ylabel="Jaccard distance", ylim=(0, None))
    left.legend()
    figure.savefig(path, dpi=130)


def parse_arguments() -> argparse.Namespace:
    """The command line; without arguments it gives the paper's table."""
    parser = argparse.ArgumentParser(prog="python -m opd_verl.experiments.toy", description="EOPD's toy experiment")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--reward", type=Reward, choices=list(Reward), default=Reward.PAPER)
    parser.add_argument("--grid", action="store_true", help="search learning rates and steps up to --steps")
    parser.add_argument("--out", type=Path, default=Path("outputs/toy"), help="folder of toy.png")
    return parser.parse_args()


def main() -> None:
    """Print the table and write `toy.png`, or print the grid."""
    options = parse_arguments()
    draws, console = draw(options.seeds, options.steps), Console()
    if options.grid:
        console.print(grid_table(draws, options.reward))
        return
    runs = simulate_all(draws, options.learning_rate, options.reward)
    title = f"{options.steps} steps, learning rate {options.learning_rate}, {options.seeds} seeds, {options.reward}"
    console.print(result_table(runs, title))
    options.out.mkdir(parents=True, exist_ok=True)
    draw_figure(runs, options.out / "toy.png")
    console.print(f"wrote {options.out / 'toy.png'}")


if __name__ == "__main__":
    main()
