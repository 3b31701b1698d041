"""Privileged contexts: text before the question that the teacher alone reads (objectives/README.md 7).

`opd.context.name` names a hook: a pure function that takes one sample of the data set and returns the text to put
before the last user message. The teacher then scores the student's response after this longer prompt: tokens are
aligned by their offset in the response, never by absolute position.

    from opd_verl.contexts import register_context

    @register_context("reference_solution")
    def reference_solution(sample):
        return f"A correct solution:\\n\\n{sample['extra_info']['solution']}\\n\\n"

The built-in contexts are those of Unmasking, appendix E.9, which shows their structure and not their words: `1c`, `3c`,
`1c1w`, `1c_large` (a larger model's solution), and `sum_1c`, `sum_1c1w` on summaries. They read lists of texts:
`extra_info.correct`, `wrong`, `correct_large`, `correct_summaries` and `wrong_summaries`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from opd_verl.config.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, object]
"""`role` and `content` of one turn of a conversation."""
Sample = Mapping[str, Any]
"""A row of the data set; its columns are the user's."""
ContextHook = Callable[[Sample], str]
"""Takes a sample; gives the text before its question."""
CONTEXT_HOOKS: Registry[ContextHook] = Registry("context")

CORRECT = "Here is a correct solution to the problem below.\n\n{}\n\n"
WRONG = "Warning: the following solution to the problem below is wrong. Do not repeat its mistakes.\n\n{}\n\n"
TASK = "Now solve this problem yourself.\n\n"


def register_context(name: str) -> Callable[[ContextHook], ContextHook]:
    """Registers a context under `name`; a name taken by another function is a ValueError."""
    return CONTEXT_HOOKS.register(name)


def texts(sample: Sample, field: str, count: int) -> list[str]:
    """The first `count` texts of `extra_info.<field>`. Raises ValueError if there are fewer."""
    column = (sample.get("extra_info") or {}).get(field)
    available = [] if column is None else [str(text) for text in column]
    if len(available) < count:
        raise ValueError(
            f"opd.context.name needs {count} texts in extra_info.{field}, sample "
            f"{sample.get('index', '?')} has {len(available)}; drop such rows from data.train_files"
        )
    return available[:count]


def demonstrations(sample: Sample, needs: Mapping[str, int]) -> str:
    """The texts of each field in `needs`, wrong solutions under a warning, then the call to solve the problem."""
    shown = [
        (WRONG if field.startswith("wrong") else CORRECT).format(text)
        for field, count in needs.items()
        for text in texts(sample, field, count)
    ]
    return "".join([*shown, TASK])


NEEDS: dict[str, dict[str, int]] = {
    "1c": {"correct": 1},
    "3c": {"correct": 3},
    "1c1w": {"correct": 1, "wrong": 1},
    "1c_large": {"correct_large": 1},
    "sum_1c": {"correct_summaries": 1},
    "sum_1c1w": {"correct_summaries": 1, "wrong_summaries": 1},
}
"""Number of texts of each field of extra_info that a built-in context shows, in order, by the context's name."""

for _name, _needs in NEEDS.items():
    register_context(_name)(partial(demonstrations, needs=_needs))


def with_context(messages: Sequence[Message], context: str) -> list[dict[str, object]]:
    """The conversation with `context` before the text of its last user message.

    Raises:
        ValueError: there is no user message, or its content is not text.
    """
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    question = messages[places[-1]]["content"] if places else None
    if not isinstance(question, str):
        raise ValueError("opd.context needs a prompt whose last user message is text")
    changed = [dict(message) for message in messages]
    changed[places[-1]]["content"] = context + question
    return changed


Render = Callable[[Sequence[Message]], list[int]]
"""Takes a conversation; gives its token ids by the chat template, with the generation prompt."""


def chat_template(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any] | None) -> Render:
    """The tokenizer's chat template as a function; `options` are `data.apply_chat_template_kwargs`."""

    def render(messages: Sequence[Message]) -> list[int]:
        # verl's agent loops give the same arguments, so both render a conversation alike.
        ids = tokenizer.apply_chat_template(
            cast(list[dict[str, str]], messages),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **(options or {}),
        )
        return cast(list[int], ids)

    return render


def teacher_prompt(
    messages: Sequence[Message],
    context: str,
    render: Render,
    prompt_ids: Sequence[int],
    max_tokens: int,
) -> list[int]:
    """Token ids of the teacher's prompt: the conversation with the context.

    Args:
        messages: the student's conversation.
        context: text to put before its last user message.
        render: the chat template.
        prompt_ids: token ids of the student's prompt.
        max_tokens: the most tokens that the context may add.

    Raises:
        ValueError: the conversation without context gives other ids than `prompt_ids` (tools, several turns, a cut
            prompt), or the context is too long.
    """
    # The prompts may differ only in the context: else the teacher would score the response to another conversation.
    if list(render(messages)) != list(prompt_ids):
        raise ValueError(
            "opd.context needs prompts that are the chat template of `raw_prompt` and nothing else: no tools, no "
            "turns of an environment, none cut at data.max_prompt_length"
        )
    longer = list(render(with_context(messages, context)))
    added = len(longer) - len(prompt_ids)
    if added > max_tokens:
        raise ValueError(
            f"the context adds {added} tokens, above opd.context.max_tokens={max_tokens}; raise it, or shorten the "
            "context"
        )
    return longer
