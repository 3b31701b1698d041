"""The parts of a pair's entry in probe.json besides its measurements; the probe writes them, the report reads them."""

from dataclasses import dataclass, field

from opd_verl.metrics.estimate import Estimate

VERSION = 1
"""Version of probe.json; it rises with every change of the file's form."""


@dataclass(frozen=True)
class Verdict:
    """A forecast of a run with this pair, and its reason."""

    verdict: str
    rule: str
    """The rule that applied, in words."""
    number: str
    """The measurement that decided, with its interval."""
    row: str
    """The paper's row that the rule rests on."""
    sure: float | None
    """Share of the bootstrap's replicates that obey the rule; None if no bootstrap decides it."""
    remedies: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CompatibilityCheck:
    """One check of compatibility and its outcome."""

    what: str
    ok: bool
    detail: str
    fatal: bool = False
    """Whether this failure makes every measurement with the teacher impossible."""


@dataclass(frozen=True)
class Depth:
    """Mean r_t of the tokens at positions first .. last, both included."""

    first: int
    last: int
    reward: Estimate
    """Nats."""
    tokens: int


@dataclass(frozen=True)
class Mass:
    """Probability mass of the teacher's top-k, and its bytes (EOPD, appendix F)."""

    k: int
    mass: float
    """Mean cumulative probability of the k most likely ids."""
    bytes: int
    """Bytes per response token on the wire, log q and entropy included."""


@dataclass(frozen=True)
class Continuation:
    """Results of the teacher that continues the student's rollouts after their first `share`."""

    share: float
    teacher: Estimate
    """Accuracy of the teacher's ends."""
    advantage: Estimate
    """Accuracy of the teacher's ends less the accuracy of the student's own ends (Rethinking)."""
    below: float
    """Share of the bootstrap's replicates in which the advantage is negative."""
