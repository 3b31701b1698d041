"""What the teacher reads before the question and the student does not: privileged contexts (objectives/README.md 7).

`opd.context.name` names a hook: a pure function of one sample's fields, as the data set holds them, that returns the
text to put before the last user message. The teacher then scores the same response behind its own, longer prompt:
tokens are aligned by their offset in the response, never by absolute position.

    from opd_verl.contexts import register_context

    @register_context("reference_solution")
    def reference_solution(sample):
        return f"A correct solution:\\n\\n{sample['extra_info']['solution']}\\n\\n"

The built-in ones are those of Unmasking, appendix E.9, which shows their structure and not their words: `1c`, `3c`,
`1c1w`, `1c_large` (a larger model's solution), and `sum_1c`, `sum_1c1w` on summaries. They read lists of texts:
`extra_info.correct`, `wrong`, `correct_large`, `correct_summaries` and `wrong_summaries`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from opd_verl.config.registry import Registry

Message = Mapping[str, Any]
ContextHook = Callable[[Mapping[str, Any]], str]
CONTEXT_HOOKS: Registry[ContextHook] = Registry("context")

CORRECT = "Here is a correct solution to the problem below.\n\n{}\n\n"
WRONG = "Warning: the following solution to the problem below is wrong. Do not repeat its mistakes.\n\n{}\n\n"
TASK = "Now solve this problem yourself.\n\n"


def register_context(name: str) -> Callable[[ContextHook], ContextHook]:
    """Registers a context under `name`; a name taken by another function is a ValueError."""
    return CONTEXT_HOOKS.register(name)


def texts(sample: Mapping[str, Any], field: str, count: int) -> list[str]:
    """The first `count` texts of `extra_info.<field>`. Raises ValueError if there are fewer."""
    found = (sample.get("extra_info") or {}).get(field)
    found = [] if found is None else [str(text) for text in found]
    if len(found) < count:
        raise ValueError(
            f"opd.context.name needs {count} texts in extra_info.{field}, sample "
            f"{sample.get('index', '?')} has {len(found)}; drop such rows from data.train_files"
        )
    return found[:count]


def demonstrations(sample: Mapping[str, Any], needs: Mapping[str, int]) -> str:
    """The texts of each field, wrong ones under a warning, then the call to solve the problem."""
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
"""Of each built-in context: how many texts of which fields of extra_info it shows, in this order."""

for _name, _needs in NEEDS.items():
    register_context(_name)(partial(demonstrations, needs=_needs))


def with_context(messages: Sequence[Message], context: str) -> list[dict[str, Any]]:
    """The conversation with `context` before the text of its last user message.

    Raises ValueError where there is no user message, or its content is not text.
    """
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not places or not isinstance(messages[places[-1]]["content"], str):
        raise ValueError("opd.context needs a prompt whose last user message is text")
    changed = [dict(message) for message in messages]
    changed[places[-1]]["content"] = context + changed[places[-1]]["content"]
    return changed


def chat_template(tokenizer: Any, options: Mapping[str, Any] | None) -> Callable[[Sequence[Message]], list[int]]:
    """messages -> token ids with the generation prompt; `options`: data.apply_chat_template_kwargs."""
    return partial(
        tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=True, return_dict=False, **(options or {})
    )


def teacher_prompt(
    messages: Sequence[Message],
    context: str,
    render: Callable[[Sequence[Message]], list[int]],
    prompt_ids: Sequence[int],
    max_tokens: int,
) -> list[int]:
    """Token ids of the prompt with the context.

    Args:
        render: messages -> token ids, by the chat template, with the generation prompt.
        prompt_ids: what the student read; the messages without context must give just that.
        max_tokens: the most tokens that the context may add.

    Raises:
        ValueError: they give something else (tools, several turns, a cut prompt), or the context is too long.
    """
    if list(render(messages)) != list(prompt_ids):
        raise ValueError(
            "opd.context needs prompts that are the chat template of `raw_prompt` and nothing else: no tools, no "
            "turns of an environment, none cut at data.max_prompt_length"
        )
    found = list(render(with_context(messages, context)))
    if len(found) - len(prompt_ids) > max_tokens:
        raise ValueError(
            f"the context adds {len(found) - len(prompt_ids)} tokens, above opd.context.max_tokens={max_tokens}; raise "
            "it, or shorten the context"
        )
    return found
