"""Capacity's tables 3 and 4 from two checkpoints of one student."""

from collections.abc import Sequence

from opd_verl.probe.prepare import AFTER, BEFORE
from opd_verl.probe.result import PairResult
from opd_verl.utils.markdown import markdown_table


def before_and_after(pairs: Sequence[PairResult]) -> str:
    """Capacity's tables 3 and 4, with a row for every teacher that was measured with the student before and after."""
    measured = {(pair.teacher, pair.student): pair for pair in pairs if pair.measured is not None}
    teachers = [teacher for teacher, student in measured if student == BEFORE and (teacher, AFTER) in measured]
    shape = [shape_row(teacher, measured[teacher, BEFORE], measured[teacher, AFTER]) for teacher in teachers]
    force = [force_row(teacher, measured[teacher, BEFORE], measured[teacher, AFTER]) for teacher in teachers]
    shape_heads = ["teacher", "rho pre", "post", "Δ", "ForkOverlap pre", "post", "Δ", "Δ(entropy gap)", "accuracy Δ"]
    force_heads = ["teacher", "destructive mass", "mean abs r", "corrective mass", "mean abs r", "Dest:Corr"]
    return (
        f"Entropy shape (Capacity, table 3):\n\n{markdown_table(shape_heads, shape)}\n\n"
        "Destructive and corrective Q3 before training (Capacity, table 4):\n\n"
        f"{markdown_table([*force_heads, 'Dest:Corr after', 'accuracy Δ'], force)}"
    )


def value(pair: PairResult, name: str) -> float:
    """The value of one measurement."""
    assert pair.measured is not None
    return pair.measured.values[name].estimate.value


def change(before: PairResult, after: PairResult, name: str) -> float:
    """A measurement after the training less its value before the training."""
    return value(after, name) - value(before, name)


def shape_row(teacher: str, before: PairResult, after: PairResult) -> list[str]:
    """A row of Capacity's table 3; shares and accuracies in percent."""
    rho, forks = ([value(pair, name) for pair in (before, after)] for name in ("rho", "fork_overlap"))
    return [
        teacher,
        *(f"{number:.2f}" for number in rho),
        f"{change(before, after, 'rho'):+.2f}",
        *(f"{100 * number:.1f}" for number in forks),
        f"{100 * change(before, after, 'fork_overlap'):+.1f}",
        f"{change(before, after, 'mean_entropy_gap'):+.3f}",
        f"{100 * change(before, after, 'student_accuracy'):+.1f}",
    ]


def force_row(teacher: str, before: PairResult, after: PairResult) -> list[str]:
    """A row of Capacity's table 4; masses and accuracies in percent, mean abs r in nats."""
    return [
        teacher,
        *(
            f"{100 * value(before, name):.1f}" if name.endswith("mass") else f"{value(before, name):.3f}"
            for name in ("destructive_mass", "destructive_reward", "corrective_mass", "corrective_reward")
        ),
        f"{value(before, 'dest_corr'):.2f}",
        f"{value(after, 'dest_corr'):.2f}",
        f"{100 * change(before, after, 'student_accuracy'):+.1f}",
    ]
