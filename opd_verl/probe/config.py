"""The settings of one probe. `hydra_configs/probe/probe.yaml` holds the same defaults."""

from dataclasses import dataclass, field
from typing import Any

from opd_verl.config.command import check_least
from opd_verl.config.errors import ConfigError
from opd_verl.metrics.thresholds import LOW_ENTROPY
from opd_verl.sampling.settings import JudgedSamplingConfig, SamplingSettings


@dataclass
class ProbeConfig(JudgedSamplingConfig):
    """The student, its teachers, the prompts, and how they are measured."""

    student: str | None = None
    """Folder or hub name of the model that would be trained."""
    after: str | None = None
    """Folder or hub name of the student after its training; None: only the student before training is measured."""
    teacher: Any = None
    """One path, a list of paths and `name=path`, or {name: path}."""
    prompts: Any = None
    """verl-format files: a path or a list of paths."""
    out: str = "runs/probe"
    """Folder of the results."""
    rollouts: int = 100
    """Number of rollouts that are measured."""
    n: int = 4
    """Responses per prompt for the accuracies."""
    headroom: bool = True
    """Whether the teachers also answer the prompts."""
    continuation: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])
    """Shares of a rollout after which the teacher goes on in the student's place."""
    top_p: float = 1.0
    k: int = 16
    """Size of the top-k that both models are compared on."""
    low_entropy: float = LOW_ENTROPY
    """Student entropy below which a token counts as committed, nats."""
    samples: int = 6
    """Number of rollouts that tokens.json shows token by token."""

    @property
    def sampling(self) -> SamplingSettings:
        """The settings that decide which tokens are sampled."""
        return self.sampling_settings(self.n, self.top_p)

    def check(self) -> None:
        """Raises ConfigError for impossible values. Opens no model and no file."""
        for name, example in (("student", "/path/to/student"), ("prompts", "train.parquet")):
            if not getattr(self, name):
                raise ConfigError(name, None, "is not set", f"{name}={example}")
        self.sampling.check()
        if self.temperature == 0.0:
            problem = "the probe measures a sampled distribution, not greedy rollouts"
            raise ConfigError("temperature", self.temperature, problem, "temperature=1.0")
        check_least(self, rollouts=2, k=1, resamples=100, samples=0, workers=1)
        for share in self.continuation:
            if not 0.0 <= share < 1.0:
                problem = f"{share:g} is not a share of a rollout: at least 0 and below 1"
                raise ConfigError("continuation", self.continuation, problem, "continuation=[0.25,0.5,0.75]")
