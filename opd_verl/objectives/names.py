"""Choices of an objective, by the names that the config uses."""

from enum import StrEnum


class Support(StrEnum):
    """The token ids S_t that an objective reads (objectives/README.md 3)."""

    sampled = "sampled"
    """The sampled token y_t alone."""
    student_topk = "student_topk"
    """The k most likely ids of the student that sampled the rollout."""
    teacher_topk = "teacher_topk"
    """The k most likely ids of the teacher."""
    union = "union"
    """Both top-k."""
    intersection = "intersection"
    """Ids in both top-k: overlap only."""
    symmetric_difference = "symmetric_difference"
    """Ids in one top-k but not in the other: non-overlap only."""
    full = "full"
    """The whole vocabulary."""


JOINT_SUPPORTS = (Support.union, Support.intersection, Support.symmetric_difference)
"""Supports made of the student's and the teacher's top-k."""
TEACHER_SUPPORTS = (Support.teacher_topk, *JOINT_SUPPORTS)
"""Supports that read the teacher's top-k."""
TOPK_SUPPORTS = (Support.student_topk, *TEACHER_SUPPORTS)
"""Supports that read a top-k."""


class Divergence(StrEnum):
    """The distance of student p and teacher q that is minimised (objectives/README.md 2, 3)."""

    reverse = "reverse"
    """KL(p || q)."""
    forward = "forward"
    """KL(q || p)."""
    jsd = "jsd"
    """beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p."""


class Tail(StrEnum):
    """Treatment of the probability outside the support (objectives/README.md 3)."""

    renorm = "renorm"
    """Both sides are renormalised on the support (the papers)."""
    none = "none"
    """Raw masses; the sum can be negative."""
    bucket = "bucket"
    """One extra symbol holds everything outside the support."""
    generalised = "generalised"
    """Raw masses plus the term that makes each summand non-negative: `- p + q` (reverse), `- q + p` (forward)."""
    renorm_teacher = "renorm_teacher"
    """The teacher renormalised on the support, the student's full softmax (EOPD eq. 10)."""


class Weighting(StrEnum):
    """The weight of each support token in the policy-gradient top-k (objectives/README.md 4)."""

    student = "student"
    """The student's probability, renormalised on the support."""
    teacher = "teacher"
    """The teacher's probability, renormalised on the support."""
    uniform = "uniform"
    """1 for every token."""


class Placement(StrEnum):
    """Where the extra forward KL applies (objectives/README.md 5, EOPD 5.6)."""

    none = "none"
    """Nowhere."""
    gated = "gated"
    """Where the teacher's full-vocabulary entropy exceeds tau."""
    full = "full"
    """At every token."""
    random = "random"
    """A seeded share of every rollout's positions."""


class Truncation(StrEnum):
    """Treatment of rollouts that hit the length limit without an end-of-sequence token (credit/README.md 3)."""

    keep = "keep"
    """Distillation on all tokens."""
    mask = "mask"
    """No distillation on such a rollout; verl's entropy and reference-KL terms still see it."""
    mask_tail = "mask_tail"
    """No distillation on the last tokens of such a rollout."""
    drop = "drop"
    """No term sees such a rollout, and a task reward's group statistics leave it out."""
