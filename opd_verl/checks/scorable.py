"""Whether a teacher can score a student's tokens: the checks that training, the probe and the alignment share.

Each command has its own names for these settings. It passes them as `SettingNames`, so that a refusal names keys of
this command's config.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from opd_verl.checks.template import template_difference
from opd_verl.config.errors import ConfigError


@dataclass(frozen=True)
class SettingNames:
    """A command's own names for the settings that decide whether a teacher fits."""

    teacher: str
    """The key that names the teacher's model."""
    longest: str
    """The keys that add up to the longest sequence, for a message."""
    shorten: str
    """The keys to lower where the longest sequence does not fit."""
    template_options: str
    """The key of the chat template's options."""
    same_template: str | None = None
    """The key that accepts another chat template; None: the command has no such key."""


@dataclass(frozen=True)
class ScoringPair:
    """A student, and the teacher that shall score its tokens; no weights are read."""

    student: PreTrainedTokenizerBase
    """The student's tokenizer."""
    teacher: PreTrainedTokenizerBase
    """The teacher's tokenizer."""
    path: str
    """The teacher's model."""
    tokenizer_path: str
    """Folder or hub name of the teacher's tokenizer."""
    config: PretrainedConfig
    """The text part of the teacher's config."""
    longest: int
    """Tokens of the longest sequence that the teacher reads."""
    options: Mapping[str, object]
    """Options of the chat template."""


def scoring_checks(pair: ScoringPair, names: SettingNames) -> dict[str, Callable[[], str | None]]:
    """The checks by their subject; each raises ConfigError, or returns a remark on a harmless difference, or None."""
    return {
        "tokenizer and end of a response": lambda: check_same_tokenizer(pair, names),
        "vocabulary": lambda: check_vocabulary(names.teacher, pair.path, pair.config, len(pair.student)),
        "context": lambda: check_context(pair, names),
        "chat template": lambda: check_template(pair, names),
    }


def check_same_tokenizer(pair: ScoringPair, names: SettingNames) -> None:
    """Scores are per student token: the teacher must give every id the same meaning."""
    student, teacher = pair.student, pair.teacher
    if student.get_vocab() != teacher.get_vocab():
        only = len(set(student.get_vocab()) ^ set(teacher.get_vocab()))
        sizes = f"{len(teacher)} and {len(student)} tokens, {only} not shared"
        problem = f"another tokenizer than the student's ({sizes}); distilling across tokenizers is not supported"
        raise ConfigError(names.teacher, pair.tokenizer_path, problem, "choose a teacher of the student's model family")
    if student.eos_token_id != teacher.eos_token_id:
        problem = f"ends a response with {teacher.eos_token!r}, the student with {student.eos_token!r}"
        remedy = "give both models one eos_token in tokenizer_config.json"
        raise ConfigError(names.teacher, pair.tokenizer_path, problem, remedy)


def check_vocabulary(key: str, path: str, config: PretrainedConfig, tokens: int) -> None:
    """A model has a row for each of the tokenizer's ids.

    Rows beyond the tokens are padding, which student and teacher cut off; with fewer rows a gather would read a wrong
    row.
    """
    if config.vocab_size < tokens:
        problem = f"vocab_size {config.vocab_size} is below the tokenizer's {tokens} tokens"
        raise ConfigError(key, path, problem, "use the tokenizer that belongs to this model")


def check_context(pair: ScoringPair, names: SettingNames) -> None:
    """The longest sequence fits the teacher's positions."""
    check_length(names.teacher, pair.path, pair.config, pair.longest, names.longest, names.shorten)


def check_length(key: str, path: str, config: PretrainedConfig, longest: int, formula: str, shorten: str) -> None:
    """A sequence of `longest` tokens fits a model's positions; `formula` and `shorten` are for the message."""
    limit = getattr(config, "max_position_embeddings", None)  # absent where a model has no limit
    if limit and longest > limit:
        problem = f"context of {limit} tokens, but {formula} = {longest}"
        raise ConfigError(key, path, problem, f"lower {shorten} by {longest - limit}")


def check_template(pair: ScoringPair, names: SettingNames) -> str | None:
    """Both chat templates must make the same prompt; returns a remark where the teacher has no template."""
    if pair.student.chat_template and not pair.teacher.chat_template:
        return "no chat template of its own; it reads the student's prompts"
    parts = template_difference(pair.student, pair.teacher, pair.options)
    if parts is None:
        return None
    problem = f"its chat template makes other prompts than the student's: the student's prompts read {parts}"
    remedy = f"+{names.template_options}.enable_thinking=false or another option of the templates"
    if names.same_template is None:
        raise ConfigError(names.teacher, pair.path, problem, remedy)
    raise ConfigError(names.same_template, True, problem, f"{remedy}, or {names.same_template}=false")
