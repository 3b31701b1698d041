"""Settings of sampling: the tokens, the engine, the judge, and the keys that several commands share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from opd_verl.config.errors import ConfigError

Built = TypeVar("Built")
OWN_REWARD = "pkg://opd_verl.rewards"
"""The default judge."""


@dataclass(frozen=True)
class SamplingSettings:
    """Everything that decides which tokens are sampled, except the model and the prompts.

    `SamplingSettings(n=8, top_p=0.8, max_tokens=8192)` is EOPD's evaluation.
    """

    n: int = 1
    """Responses per prompt."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = -1
    """-1 or 0: no limit."""
    max_tokens: int = 1024
    """Response tokens, the end-of-sequence token included."""
    seed: int = 0
    suffix: str = ""
    """Text at the end of the last user message; a message that already ends with this text is unchanged."""
    chat_template_kwargs: dict[str, object] = field(default_factory=dict)
    """verl's data.apply_chat_template_kwargs, such as {"enable_thinking": False}."""
    max_prompt_tokens: int | None = None
    """A longer prompt is an error; None: the model's context less max_tokens."""
    prompts_per_shard: int = 64
    """Prompts that are sampled in one batch and saved together."""

    def check(self) -> None:
        """Raises ConfigError for a value out of range."""
        for name in ("n", "max_tokens", "max_prompt_tokens", "prompts_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, value, "must be at least 1", f"{name}=1 or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError("top_p", self.top_p, "must lie in (0, 1]", "top_p=1.0")
        if self.top_k < -1:
            raise ConfigError("top_k", self.top_k, "must be positive, or -1 for no limit", "top_k=-1")
        if self.temperature < 0.0:
            raise ConfigError(
                "temperature", self.temperature, "must not be negative", "temperature=1.0, or 0 for greedy"
            )
        if self.temperature == 0.0 and self.n > 1:
            problem = f"greedy responses to a prompt are all the same, so n={self.n} responses tell no more than one"
            raise ConfigError("temperature", self.temperature, problem, "n=1, or temperature=1.0")


@dataclass(frozen=True)
class EngineSettings:
    """How vLLM runs. None: float32 and eager on a CPU, auto and CUDA graphs on a GPU."""

    dtype: str | None = None
    enforce_eager: bool | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    trust_remote_code: bool = False


@dataclass(frozen=True)
class RewardSettings:
    """The judge, given as in verl's reward.custom_reward_function."""

    path: str = OWN_REWARD
    """A Python file, or pkg://a.module."""
    name: str = "compute_score"


@dataclass
class JudgedSamplingConfig:
    """Keys of all commands that sample, judge and estimate: eval, probe and alignment.

    A command's own dataclass inherits these keys, adds its own, and redefines defaults that differ.
    """

    temperature: float = 1.0
    """0 is greedy, if the command allows it."""
    max_tokens: int = 4096
    """Response tokens, the end-of-sequence token included."""
    suffix: str = ""
    """Text at the end of the last user message; a message that already ends with this text is unchanged."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """verl's data.apply_chat_template_kwargs. (`Any`, because OmegaConf refuses `object`.)"""
    seed: int = 0
    """Seed of the sampling, the bootstrap, and all other random choices of the command."""
    max_prompt_tokens: int | None = None
    """A longer prompt is an error; None: the model's context less max_tokens."""
    prompts_per_shard: int = 64
    """Prompts that are sampled in one batch and saved together."""
    resamples: int = 2000
    """Bootstrap replicates behind each interval."""
    workers: int | None = None
    """Processes that judge; None: one per processor."""
    reward: RewardSettings = field(default_factory=RewardSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)

    def sampling_settings(self, n: int, top_p: float = 1.0, top_k: int = -1) -> SamplingSettings:
        """The settings that decide which tokens are sampled; settings that are not shared keys are arguments."""
        return SamplingSettings(
            n=n,
            temperature=self.temperature,
            top_p=top_p,
            top_k=top_k,
            max_tokens=self.max_tokens,
            seed=self.seed,
            suffix=self.suffix,
            chat_template_kwargs=self.chat_template_kwargs,
            max_prompt_tokens=self.max_prompt_tokens,
            prompts_per_shard=self.prompts_per_shard,
        )


def from_fields(build: Callable[..., Built], values: Mapping[str, object]) -> Built:
    """A settings dataclass from its `asdict`, after the fields have travelled as JSON."""
    return build(**values)


def differing(old: Mapping[str, object], new: Mapping[str, object]) -> Sequence[str]:
    """The keys whose values differ; keys of an inner dict are joined by dots."""
    changed: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += [f"{key}.{inner}" for inner in differing(before, after)]
        elif before != after:
            changed.append(key)
    return changed
