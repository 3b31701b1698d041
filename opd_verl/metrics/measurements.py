"""The measurements of metrics/README.md 1 by name, from rollouts that both sides scored: for probe and training.

Shapes: B rollouts, R response tokens. Nats, detached.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from opd_verl.metrics import entropy_shape, uncertainty
from opd_verl.metrics.overlap import Overlap
from opd_verl.metrics.quadrants import q3_split, quadrant_shares, quadrant_sums
from opd_verl.metrics.ratio import Ratio, of_rollouts, of_tokens, token_means
from opd_verl.metrics.thresholds import LOW_ENTROPY


@dataclass(frozen=True, eq=False)
class Observed:
    """Rollouts as student and teacher see them; [B, R] unless a field says otherwise, defined where `mask` is 1."""

    log_p: Tensor
    """log p(y_t) of the student that sampled the rollout."""
    log_q: Tensor
    """log q(y_t) of the teacher."""
    student_entropy: Tensor
    """Full-vocabulary entropy of p."""
    mask: Tensor
    """1 on response tokens whose values are valid."""
    teacher_entropy: Tensor | None = None
    """Full-vocabulary entropy of q; None where the teacher does not give it."""
    correct: Tensor | None = None
    """Whether the rollout is correct, bool [B]; None where no reward tells."""
    truncated: Tensor | None = None
    """Whether the rollout hit the length limit, bool [B]; None where not known."""
    overlap: Overlap | None = None
    """Agreement of the two top-k; None where the top-k were not read."""

    @property
    def reward(self) -> Tensor:
        """r_t = log q - log p."""
        return self.log_q - self.log_p


def measurements(
    seen: Observed, low_entropy: float = LOW_ENTROPY, taus: Sequence[float] = uncertainty.TAUS
) -> dict[str, Ratio]:
    """All measurements that the fields of `seen` allow, by name; `opd_verl.metrics.meanings` explains the names.

    Args:
        seen: the rollouts.
        low_entropy: student entropy below which a token counts as committed, nats.
        taus: thresholds of the gate's shares, nats.
    """
    sums = quadrant_sums(seen.reward, seen.student_entropy, seen.mask, low_entropy)
    measured = lengths_and_rewards(seen) | quadrant_shares(*sums)
    if seen.correct is not None:
        measured["accuracy"] = of_rollouts(seen.correct.double())
        measured |= q3_split(*sums, seen.correct)
    if seen.teacher_entropy is not None:
        measured |= entropies(seen.student_entropy, seen.teacher_entropy, seen.mask, taus)
    if seen.overlap is not None:
        measured |= overlaps(seen.overlap, seen.mask)
        if seen.teacher_entropy is not None:
            fkl = uncertainty.forward_kl_at_forks(seen.overlap.forward_kl, seen.teacher_entropy, seen.mask)
            measured["forward_kl_at_forks"] = fkl
    return measured


def lengths_and_rewards(seen: Observed) -> dict[str, Ratio]:
    """Measurements of the sampled tokens alone."""
    measured = {
        "response_length": of_rollouts(seen.mask.sum(-1).double()),
        "reverse_kl": of_tokens(-seen.reward, seen.mask),
        "student_entropy": of_tokens(seen.student_entropy, seen.mask),
        "student_high_entropy_share": uncertainty.high_share(seen.student_entropy, seen.mask),
    }
    if seen.truncated is not None:
        measured["truncated_share"] = of_rollouts(seen.truncated.double())
    return measured


def entropies(student: Tensor, teacher: Tensor, mask: Tensor, taus: Sequence[float]) -> dict[str, Ratio]:
    """Measurements of both entropies [B, R]; `taus` are the thresholds of the gate's shares, nats."""
    measured = {
        "rho": of_rollouts(entropy_shape.entropy_correlation(student, teacher, mask)),
        "fork_overlap": of_rollouts(entropy_shape.fork_overlap(student, teacher, mask)),
        "entropy_gap": of_rollouts(entropy_shape.position_gap(student, teacher, mask)),
        "mean_entropy_gap": of_rollouts(entropy_shape.mean_gap(student, teacher, mask)),
        "teacher_entropy": of_tokens(teacher, mask),
        "teacher_high_entropy_share": uncertainty.high_share(teacher, mask),
    }
    gated = uncertainty.gated_shares(teacher, mask, taus)
    return measured | {f"gated_share_{tau:g}": share for tau, share in gated.items()}


def overlaps(overlap: Overlap, mask: Tensor) -> dict[str, Ratio]:
    """Measurements of both top-k: a mean within each rollout, then over rollouts."""
    parts = {
        "overlap_ratio": overlap.ratio,
        "overlap_student_mass": overlap.student_mass,
        "overlap_teacher_mass": overlap.teacher_mass,
        "overlap_advantage": overlap.advantage,
    }
    return {name: of_rollouts(token_means(values, mask)) for name, values in parts.items()}
