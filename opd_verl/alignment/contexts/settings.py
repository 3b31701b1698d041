"""Which self-distillation contexts are teachers, and how their texts are sampled (Unmasking, appendix E.9)."""

from collections import Counter
from dataclasses import dataclass, field

from opd_verl.config.errors import ConfigError
from opd_verl.contexts import CONTEXT_HOOKS, NEEDS

LARGE = "correct_large"
SUMMARIES = "_summaries"
"""End of the names of extra_info's fields that hold summaries."""


@dataclass
class ContextSettings:
    """The section `contexts` of the alignment command's config."""

    names: list[str] = field(default_factory=list)
    """Contexts of `opd_verl.contexts`. A context of your own samples nothing: it reads the texts of the rows."""
    summariser: str | None = None
    """Model that condenses demonstrations (Qwen3-32B in the paper); None: the student itself."""
    large: str | None = None
    """Model whose solutions `1c_large` shows."""
    temperature: float = 0.7
    """Sampling temperature of demonstrations and summaries."""
    trials: int = 60
    """Most responses sampled per question in search of demonstrations."""
    per_round: int = 8
    """Responses per round to each question that still lacks a text."""
    screen: int = 0
    """Responses per question and context that the screening samples; 0: no screening."""
    max_tokens: int | None = None
    """Longest demonstration, and longest summary; None: the run's `max_tokens`."""

    @property
    def wanted(self) -> dict[str, int]:
        """Most texts that any context shows, by field of extra_info."""
        most: Counter[str] = Counter()
        for name in self.names:
            # Union of counters: the larger count of each field.
            most |= Counter(NEEDS.get(name, {}))
        return dict(most)

    def check(self) -> None:
        """Raises ConfigError for impossible values. Opens no model and no file."""
        self._check_names()
        for key, least in {"trials": 1, "per_round": 1, "screen": 0, "max_tokens": 1}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"contexts.{key}", value, f"must be at least {least}", f"contexts.{key}={least}")
        if self.temperature <= 0.0:
            problem = "greedy responses are all alike, and demonstrations must differ"
            raise ConfigError("contexts.temperature", self.temperature, problem, "contexts.temperature=0.7")
        self._check_models()

    def _check_names(self) -> None:
        unknown = [name for name in self.names if name not in CONTEXT_HOOKS]
        if unknown:
            problem = f"no such context (there are: {', '.join(sorted(CONTEXT_HOOKS))})"
            raise ConfigError("contexts.names", unknown[0], problem, "register it in a module named in opd.plugins")
        if len(set(self.names)) < len(self.names):
            raise ConfigError("contexts.names", self.names, "a context is named twice", "name each context once")
        if self.screen and not self.names:
            raise ConfigError("contexts.screen", self.screen, "there is no context to screen", "contexts.names=[1c]")

    def _check_models(self) -> None:
        if LARGE in self.wanted and not self.large:
            problem = "1c_large shows the solution of a larger model"
            raise ConfigError("contexts.large", self.large, problem, "contexts.large=/path/to/model")
        if self.large and LARGE not in self.wanted:
            problem = "no context in contexts.names shows its solution"
            raise ConfigError("contexts.large", self.large, problem, "add 1c_large, or drop it")
        if self.summariser and not any(name.endswith(SUMMARIES) for name in self.wanted):
            problem = "no context in contexts.names shows summaries"
            raise ConfigError("contexts.summariser", self.summariser, problem, "add sum_1c, or drop it")
