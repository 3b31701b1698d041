"""From rows to token ids: a model's tokenizer, its chat template, and the limit of its context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

from opd_verl.config.errors import ConfigError, first_line
from opd_verl.sampling.rows import ChatMessage, with_suffix
from opd_verl.sampling.settings import SamplingSettings
from opd_verl.utils.files import model_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Model:
    """An existing model: config and tokenizer are loaded, weights are not."""

    key: str
    """The setting that names the model, for messages."""
    path: str
    tokenizer: "PreTrainedTokenizerBase"
    context: int | None
    """Most tokens of prompt and response; None: no limit."""

    @cached_property
    def fingerprint(self) -> dict[str, object]:
        """Identity of the weights, from `model_fingerprint`."""
        return model_fingerprint(self.path)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of some tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        assert isinstance(text, str), "only a list of lists gives a list of texts"
        return text


def open_model(key: str, path: str, trust_remote_code: bool = False) -> Model:
    """The model of a folder or hub name. Raises ConfigError if there is no model, tokenizer or chat template."""
    from transformers import AutoTokenizer

    from opd_verl.checks.models import TERMINAL, load_config

    config = load_config(key, path, trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        problem = f"no tokenizer there ({first_line(error, TERMINAL)})"
        raise ConfigError(key, path, problem, "save the tokenizer into the model's folder") from error
    if tokenizer.chat_template is None:
        raise ConfigError(key, path, "its tokenizer has no chat template", "put a chat_template.jinja into the folder")
    return Model(key, path, tokenizer, getattr(config, "max_position_embeddings", None))


def encode(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[ChatMessage], settings: SamplingSettings
) -> list[int]:
    """Token ids of the chat prompt up to and including the assistant's header, as verl makes them."""
    # Each chat template has options of its own, so no signature can list them.
    apply_chat_template = cast("Callable[..., list[int]]", tokenizer.apply_chat_template)
    return apply_chat_template(
        with_suffix(messages, settings.suffix),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,  # otherwise transformers 5 returns a BatchEncoding instead of the ids
        **settings.chat_template_kwargs,
    )


def check_lengths(model: Model, prompts: Sequence[Sequence[int]], settings: SamplingSettings, where: str) -> None:
    """Raises ConfigError with the row of the longest prompt if it exceeds the limit, or the context with a response.

    where: name of the rows' source, for the message.
    """
    row = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    longest, limit = len(prompts[row]), settings.max_prompt_tokens
    if limit is not None and longest > limit:
        problem = f"row {row} of {where} has a prompt of {longest} tokens"
        raise ConfigError("max_prompt_tokens", limit, problem, f"max_prompt_tokens={longest}, or leave the row out")
    room = None if model.context is None else model.context - longest
    if room is not None and settings.max_tokens > room:
        problem = f"with the prompt of {longest} tokens in row {row} of {where} it exceeds the context of "
        problem += f"{model.context} tokens of {model.path}"
        remedy = f"max_tokens={room}" if room > 0 else "leave the row out, or take a model with a longer context"
        raise ConfigError("max_tokens", settings.max_tokens, problem, remedy)
