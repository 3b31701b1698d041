"""The settings of one evaluation. `hydra_configs/eval/eval.yaml` holds the same defaults, except for the preset's."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from opd_verl.config.command import check_least, read_settings
from opd_verl.config.errors import ConfigError
from opd_verl.eval.estimators import powers_of_two
from opd_verl.sampling.settings import JudgedSamplingConfig, SamplingSettings


@dataclass
class EvalConfig(JudgedSamplingConfig):
    """The models, the benchmarks, and how they are measured."""

    models: Any = None
    """Folders or hub names: one path, a list of paths and `name=path`, or {name: path}."""
    benchmarks: Any = None
    """verl-format .parquet or .jsonl files, given like the models."""
    teacher: str | None = None
    """Name or path of a model of `models`, or the path of another model: the top of the gap."""
    before: str | None = None
    """The student before its training, given like the teacher: the bottom of the gap."""
    out: str = "runs/eval"
    """Folder of the results."""
    preset: str | None = None
    """Name of the preset that set n, temperature, top_p, top_k, max_tokens, suffix and chat_template_kwargs. Only the
    table's caption reads this name."""
    n: int = 8
    """Responses per problem."""
    top_p: float = 1.0
    top_k: int = -1
    """-1: no limit."""
    max_tokens: int = 8192
    ks: list[int] | None = None
    """k of pass@k; None: 1, 2, 4, ... and n."""
    limit: int | None = None
    """Number of problems of each benchmark, from its beginning; None: all."""
    entropy: bool = True
    """Whether the token entropies of the models' own responses are read."""
    entropy_responses: int | None = 256
    """Number of responses of each benchmark whose token entropies are read; None: all."""

    @property
    def sampling(self) -> SamplingSettings:
        """The settings that decide which tokens are sampled."""
        return self.sampling_settings(self.n, self.top_p, self.top_k)

    @property
    def pass_ks(self) -> list[int]:
        """Every k of pass@k, in ascending order."""
        return powers_of_two(self.n) if self.ks is None else sorted(set(self.ks))

    def check(self) -> None:
        """Raises ConfigError for impossible values. Opens no model and no file."""
        self.sampling.check()
        for k in self.ks or []:
            if not 1 <= k <= self.n:
                raise ConfigError("ks", self.ks, f"pass@{k} needs k samples, there are n={self.n}", f"n={max(self.ks)}"
                                  if k > self.n and self.ks else "ks=[1]")  # fmt: skip
        check_least(self, resamples=100, entropy_responses=1, workers=1)


def read_config(config: DictConfig) -> EvalConfig:
    """Hydra's config as an EvalConfig. Raises ConfigError for a value of the wrong type or an unknown key."""
    return read_settings(EvalConfig, config, "hydra_configs/eval/eval.yaml")
