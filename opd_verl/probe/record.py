"""What a probe says of a pair besides its measurements, as written to probe.json and read by the report."""

from dataclasses import dataclass, field

from opd_verl.metrics.estimate import Estimate

VERSION = 1


@dataclass(frozen=True)
class Verdict:
    """What a pair's measurements say about a run with it."""

    verdict: str
    rule: str
    number: str
    """What was measured, with its interval."""
    row: str
    """The paper's row that the rule rests on."""
    sure: float | None
    """Share of the bootstrap's replicates that obey the rule; None where there is no such share."""
    remedies: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CompatibilityCheck:
    """One check of compatibility and what it found."""

    what: str
    ok: bool
    detail: str
    fatal: bool = False
    """Nothing can be measured with this teacher."""


@dataclass(frozen=True)
class Depth:
    """Mean r_t of the tokens at positions first .. last, both included."""

    first: int
    last: int
    reward: Estimate
    tokens: int


@dataclass(frozen=True)
class Mass:
    """Appendix F of EOPD: what a top-k of the teacher keeps, and what it costs."""

    k: int
    mass: float
    """Mean cumulative probability."""
    bytes: int
    """Per response token on the wire, log q and entropy included."""


@dataclass(frozen=True)
class Continuation:
    """The teacher behind the first `share` of the student's rollouts."""

    share: float
    teacher: Estimate
    """Its accuracy from there on."""
    advantage: Estimate
    """The same less the accuracy of the student's own ends (Rethinking)."""
    below: float
    """Share of the bootstrap's replicates in which it is negative."""
