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
    """Rollouts as student and teacher see them; [B, R] where not said otherwise, defined where `mask` is 1."""

    log_p: Tensor
    """log p(y_t): the student that sampled."""
    log_q: Tensor
    """log q(y_t): the teacher."""
    student_entropy: Tensor
    mask: Tensor
    teacher_entropy: Tensor | None = None
    correct: Tensor | None = None
    """bool [B]."""
    truncated: Tensor | None = None
    """bool [B]."""
    overlap: Overlap | None = None

    @property
    def reward(self) -> Tensor:
        """r_t = log q - log p."""
        return self.log_q - self.log_p


def measurements(
    seen: Observed, low_entropy: float = LOW_ENTROPY, taus: Sequence[float] = uncertainty.TAUS
) -> dict[str, Ratio]:
    """Name: measurement, as far as what was seen allows. `opd_verl.metrics.meanings` says what each name means."""
    sums = quadrant_sums(seen.reward, seen.student_entropy, seen.mask, low_entropy)
    found = lengths_and_rewards(seen) | quadrant_shares(*sums)
    if seen.correct is not None:
        found["accuracy"] = of_rollouts(seen.correct.double())
        found |= q3_split(*sums, seen.correct)
    if seen.teacher_entropy is not None:
        found |= entropies(seen.student_entropy, seen.teacher_entropy, seen.mask, taus)
    if seen.overlap is not None:
        found |= overlaps(seen.overlap, seen.mask)
        if seen.teacher_entropy is not None:
            fkl = uncertainty.forward_kl_at_forks(seen.overlap.forward_kl, seen.teacher_entropy, seen.mask)
            found["forward_kl_at_forks"] = fkl
    return found


def lengths_and_rewards(seen: Observed) -> dict[str, Ratio]:
    """What the sampled tokens alone tell."""
    found = {
        "response_length": of_rollouts(seen.mask.sum(-1).double()),
        "reverse_kl": of_tokens(-seen.reward, seen.mask),
        "student_entropy": of_tokens(seen.student_entropy, seen.mask),
        "student_high_entropy_share": uncertainty.high_share(seen.student_entropy, seen.mask),
    }
    if seen.truncated is not None:
        found["truncated_share"] = of_rollouts(seen.truncated.double())
    return found


def entropies(student: Tensor, teacher: Tensor, mask: Tensor, taus: Sequence[float]) -> dict[str, Ratio]:
    """What the two entropies tell; taus: of the gate's shares."""
    found = {
        "rho": of_rollouts(entropy_shape.entropy_correlation(student, teacher, mask)),
        "fork_overlap": of_rollouts(entropy_shape.fork_overlap(student, teacher, mask)),
        "entropy_gap": of_rollouts(entropy_shape.position_gap(student, teacher, mask)),
        "mean_entropy_gap": of_rollouts(entropy_shape.mean_gap(student, teacher, mask)),
        "teacher_entropy": of_tokens(teacher, mask),
        "teacher_high_entropy_share": uncertainty.high_share(teacher, mask),
    }
    gated = uncertainty.gated_shares(teacher, mask, taus)
    return found | {f"gated_share_{tau:g}": share for tau, share in gated.items()}


def overlaps(overlap: Overlap, mask: Tensor) -> dict[str, Ratio]:
    """What the two top-k tell; each is a mean within the rollout, then over rollouts."""
    parts = {
        "overlap_ratio": overlap.ratio,
        "overlap_student_mass": overlap.student_mass,
        "overlap_teacher_mass": overlap.teacher_mass,
        "overlap_advantage": overlap.advantage,
    }
    return {name: of_rollouts(token_means(values, mask)) for name, values in parts.items()}
