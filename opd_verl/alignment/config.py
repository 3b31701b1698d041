"""The settings of one alignment. `hydra_configs/alignment/alignment.yaml` holds the same defaults."""

from dataclasses import dataclass, field
from typing import Any

from opd_verl.alignment.contexts.settings import ContextSettings
from opd_verl.alignment.gradients.losses import LossSettings
from opd_verl.alignment.gradients.node_table import OBJECTIVES, NodeSettings
from opd_verl.alignment.tree.enrich import Budget
from opd_verl.alignment.tree.targets import TargetSettings
from opd_verl.config.command import check_least
from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import import_modules
from opd_verl.objectives.names import Support
from opd_verl.sampling.settings import JudgedSamplingConfig, SamplingSettings


@dataclass
class AlignmentConfig(JudgedSamplingConfig):
    """Student, teachers, prompts, and how each teacher is compared with the student's success."""

    student: str | None = None
    """Folder or hub name of the model that would be trained."""
    teachers: Any = None
    """External models: a path, a list of paths and `name=path`, or name: path."""
    contexts: ContextSettings = field(default_factory=ContextSettings)
    """Self-distilling teachers: the student, which reads solutions before the question."""
    prompts: Any = None
    """verl-format files: a path or a list of paths."""
    limit: int | None = None
    """Number of prompts, from the beginning of the files; None: all."""
    out: str = "runs/alignment"
    rollouts: int = 200
    """Initial rollouts per question (G)."""
    correct_paths: int = 2
    incorrect_paths: int = 2
    targets: TargetSettings = field(default_factory=TargetSettings)
    budget: Budget = field(default_factory=Budget)
    significant: float = 20.0
    """Effective visits that a child needs to count (N_sig)."""
    objectives: list[str] = field(default_factory=lambda: ["gkd"])
    """Tables and pictures are about the first objective."""
    losses: dict[str, LossSettings] = field(default_factory=dict)
    """Further objectives by name, with the keys of `opd.objective`."""
    plugins: list[str] = field(default_factory=list)
    """Your modules that register contexts."""
    prompts_per_shard: int = 16

    @property
    def sampling(self) -> SamplingSettings:
        """How the initial rollouts are sampled."""
        return self.sampling_settings(self.rollouts)

    @property
    def nodes(self) -> NodeSettings:
        """Settings of the node table."""
        return NodeSettings(self.significant, self.objectives, self.losses)

    def check(self) -> None:
        """Raises ConfigError for impossible values. Opens no model and no file."""
        import_modules("plugins", self.plugins)
        for name, example in (("student", "/path/to/student"), ("prompts", "train.parquet")):
            if not getattr(self, name):
                raise ConfigError(name, None, "is not set", f"{name}={example}")
        if not self.teachers and not self.contexts.names:
            raise ConfigError("teachers", None, "no teacher and no context is given",
                              "teachers=[/path/to/teacher], or contexts.names=[1c]")  # fmt: skip
        self.contexts.check()
        self.sampling.check()
        if self.temperature == 0.0:
            problem = "success probabilities need sampled rollouts, not greedy ones"
            raise ConfigError("temperature", self.temperature, problem, "temperature=1.0")
        check_least(self, rollouts=2, correct_paths=0, incorrect_paths=0, resamples=100, workers=1, limit=1)
        if self.correct_paths + self.incorrect_paths == 0:
            raise ConfigError("correct_paths", 0, "no path would be analysed", "correct_paths=2 incorrect_paths=2")
        self._check_targets()
        self._check_objectives()

    def _check_targets(self) -> None:
        targets = self.targets
        # For a threshold t every model gives its 1 / t most likely ids at every token: 1,000 ids for t = 0.001.
        if not 0.001 <= targets.threshold < 1.0:
            problem = "must lie in [0.001, 1): ids below it are not read"
            raise ConfigError("targets.threshold", targets.threshold, problem, "targets.threshold=0.02")
        for name, least in {
            "first_window": 1,
            "by_gradient": 0,
            "by_difference": 0,
            "enough": 1,
            "per_request": 1,
        }.items():
            if getattr(targets, name) < least:
                raise ConfigError(
                    f"targets.{name}", getattr(targets, name), f"must be at least {least}", f"targets.{name}={least}"
                )
        if not 1 <= self.significant <= targets.enough:
            problem = f"must lie between 1 and targets.enough={targets.enough}, the visits that each target gets"
            raise ConfigError("significant", self.significant, problem, f"significant={min(20, targets.enough)}")

    def _check_objectives(self) -> None:
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise ConfigError("objectives", name, f"is none of {', '.join(OBJECTIVES)}", "objectives=[gkd]")
        if not self.nodes.names:
            raise ConfigError("objectives", [], "no objective is given", "objectives=[gkd]")
        for name, loss in self.losses.items():
            if name in OBJECTIVES:
                raise ConfigError("losses", name, "is the name of an objective", "give it another name")
            if loss.support is Support.sampled:
                problem = "the sampled token alone gives no exact divergence"
                raise ConfigError(f"losses.{name}.support", "sampled", problem, "objectives=[single_sample]")
