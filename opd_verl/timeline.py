"""Shows how each step of a run spent its time, next to the teacher's own work: a picture and one number.

    python -m verl.trainer.main_ppo recipe=opd trainer.default_local_dir=run ...
    python -m opd_verl.timeline run/metrics.jsonl --out timeline.png

verl times the parts of a step one after the other; the wait for teacher scores lies within its `old_log_prob`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from opd_verl.tracking import metrics_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WAIT, LOG_PROBS, OTHER = "waiting for the teacher", "old_log_prob", "other"
EXPOSED, HIDDEN = "teacher, waited for", "teacher, hidden"
COLOURS = {
    "gen": "#4c78a8",
    "reward": "#9ecae9",
    WAIT: "#e45756",
    LOG_PROBS: "#b279a2",
    "ref": "#d6a5c9",
    "values": "#fcbfd2",
    "adv": "#eeca3b",
    "update_critic": "#d8b5a5",
    "update_actor": "#f58518",
    "update_weights": "#ffbf79",
    "save_checkpoint": "#9d755d",
    OTHER: "#bab0ac",
    EXPOSED: "#ff9d98",
    HIDDEN: "#54a24b",
}
PARTS = tuple(COLOURS)[:-2]
"""The parts of a step's bar, from the bottom; validation is no part of verl's step."""
LIMIT = 0.10
"""Largest share of a step that the wait for the teacher should take."""
WIDTH = 0.38


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step: the whole, the PARTS that it has, and the teacher's forward passes, hidden or not."""

    number: int
    whole: float
    parts: dict[str, float]
    teacher_busy: float

    @property
    def hidden(self) -> float:
        """Seconds of the teacher's work that nobody waited for, summed over replicas."""
        return max(self.teacher_busy - self.parts[WAIT], 0.0)


def step_times(number: int, metrics: dict[str, float]) -> StepTimes:
    """The times in one step's metrics. Raises ValueError without a teacher's times."""
    seconds = {name.removeprefix("timing_s/"): value for name, value in metrics.items() if name.startswith("timing_s/")}
    if missing := {"teacher", "teacher_busy"} - seconds.keys():
        raise ValueError(f"step {number} has no timing_s/{min(missing)}: not a run of recipe=opd*, or an old run")
    parts = {name: seconds[name] for name in PARTS if name in seconds}
    parts[WAIT] = seconds["teacher"]
    # verl's timer of old_log_prob encloses the wait for teacher scores: it is taken out, or it would count twice.
    parts[LOG_PROBS] = max(parts.get(LOG_PROBS, 0.0) - parts[WAIT], 0.0)
    parts[OTHER] = max(seconds["step"] - sum(parts.values()), 0.0)
    return StepTimes(number, seconds["step"], parts, seconds["teacher_busy"])


def read_steps(path: Path) -> list[StepTimes]:
    """The training steps of verl's file logger, in order. Raises ValueError where there is none."""
    steps = metrics_file.read_steps(path)
    times = [step_times(int(step["step"]), step) for step in steps if "timing_s/step" in step]
    if not times:
        raise ValueError(f"{path} holds no training step (no timing_s/step)")
    return times


def wait_share(steps: Sequence[StepTimes]) -> float:
    """Seconds waited for the teacher over the seconds of the steps."""
    return sum(step.parts[WAIT] for step in steps) / sum(step.whole for step in steps)


def hidden_share(steps: Sequence[StepTimes]) -> float:
    """Share of the teacher's busy seconds that nobody waited for; 1.0 for a teacher that did nothing."""
    busy = sum(step.teacher_busy for step in steps)
    return sum(step.hidden for step in steps) / busy if busy else 1.0


def steady(steps: Sequence[StepTimes]) -> Sequence[StepTimes]:
    """All steps but the first, in which everything starts up; a run's only step counts."""
    return steps[1:] or steps


def summary(steps: Sequence[StepTimes]) -> str:
    """The wait's share of the steady steps, of the median and the worst step, and the teacher's hidden share."""
    counted = steady(steps)
    shares = [wait_share([step]) for step in counted]
    share, worst = wait_share(counted), max(range(len(counted)), key=shares.__getitem__)
    return (
        f"Steps {counted[0].number} to {counted[-1].number}, {sum(step.whole for step in counted):.1f} s. Waiting for "
        f"the teacher: {share:.1%} of that (median step {median(shares):.1%}, worst {shares[worst]:.1%} in step "
        f"{counted[worst].number}); target <= {LIMIT:.0%}: {'met' if share <= LIMIT else 'missed'}.\n"
        f"The teacher was busy for {sum(step.teacher_busy for step in counted):.1f} s, {hidden_share(counted):.1%} of "
        "it hidden behind the rest."
    )


def stack(axes: "Axes", places: Sequence[float], layers: dict[str, list[float]]) -> None:
    """Draws bars at `places`, the layers on top of one another."""
    bottom = [0.0] * len(places)
    for name, heights in layers.items():
        axes.bar(places, heights, WIDTH, bottom, label=name, color=COLOURS[name])
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]


def draw(steps: Sequence[StepTimes], path: Path, title: str) -> None:
    """Draws two bars per step: its parts, and the teacher's busy seconds with the hidden seconds on top."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(min(max(8.0, 4.0 + 0.4 * len(steps)), 24.0), 4.5), layout="constrained")
    axes = figure.subplots()
    names = [name for name in PARTS if any(step.parts.get(name) for step in steps)]
    parts = {name: [step.parts.get(name, 0.0) for step in steps] for name in names}
    busy = {EXPOSED: [step.teacher_busy - step.hidden for step in steps], HIDDEN: [step.hidden for step in steps]}
    stack(axes, [step.number - WIDTH / 2 for step in steps], parts)
    stack(axes, [step.number + WIDTH / 2 for step in steps], busy)
    axes.set(title=title, xlabel="step (left: its parts; right: the teacher's forward passes)", ylabel="seconds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    top = 1.15 * max(max(step.whole, step.teacher_busy) for step in steady(steps))
    axes.set_ylim(0, top)
    for step in steps:
        if step.whole > top:
            axes.text(step.number, 0.98 * top, f"{step.whole:.0f} s", va="top")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Prints the summary and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN.jsonl", help="metrics.jsonl of a run")
    parser.add_argument("--out", type=Path, default=Path("timeline.png"))
    args = parser.parse_args()
    steps = read_steps(args.run)
    print(summary(steps))
    draw(
        steps,
        args.out,
        f"{'/'.join(args.run.parts[-2:])}: {wait_share(steady(steps)):.1%} of the time spent waiting for the teacher",
    )


if __name__ == "__main__":
    main()
