"""Privileged contexts: which text, where it goes, and that anything else than a plain prompt is refused."""

from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from opd_verl.contexts import CONTEXT_HOOKS, register_context, teacher_prompt, texts, with_context

SAMPLE = {
    "index": 7,
    "extra_info": {
        "correct": ["right one", "right two", "right three"],
        "wrong": ["wrong one"],
        "correct_large": ["large right", "large too"],
        "correct_summaries": ["short right"],
        "wrong_summaries": ["short wrong"],
    },
}
CHAT = [
    {"role": "system", "content": "w90"},
    {"role": "user", "content": "w5 w6"},
    {"role": "assistant", "content": "w91"},
    {"role": "user", "content": "w7"},
]
TEMPLATE = "{% for m in messages %}w2 {{ m['content'] }} w3 {% endfor %}{% if add_generation_prompt %}w4{% endif %}"


def render(messages: Any) -> list[int]:
    tokenizer = tiny_tokenizer(96)
    ids_rendered: Any = tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATE, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return ids_rendered


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("1c", ["right one"], ["right two", "wrong", "short"]),
        ("3c", ["right one", "right two", "right three"], ["wrong"]),
        ("1c1w", ["right one", "Warning: ", "wrong one"], ["right two"]),
        ("1c_large", ["large right"], ["large too", "right one", "wrong", "short"]),
        ("sum_1c", ["short right"], ["right one", "wrong"]),
        ("sum_1c1w", ["short right", "Warning: ", "short wrong"], ["wrong one"]),
    ],
)
def test_built_in_contexts_show_their_solutions_in_order(name: str, inside: list[str], outside: list[str]) -> None:
    text = CONTEXT_HOOKS[name](SAMPLE)
    places = [text.index(part) for part in inside]
    assert places == sorted(places) and not any(part in text for part in outside)
    assert text.endswith("Now solve this problem yourself.\n\n")


@pytest.mark.parametrize("sample", [{}, {"extra_info": None}, {"extra_info": {"correct": ["one", "two"]}}])
def test_a_sample_without_enough_solutions_is_named(sample: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"3 texts in extra_info.correct, sample 7 has [02]; drop such rows"):
        CONTEXT_HOOKS["3c"]({"index": 7, **sample})
    assert texts(sample, "correct", 0) == []


def test_the_context_goes_before_the_last_user_message_and_the_given_messages_stay() -> None:
    changed = with_context(CHAT, "w8 ")
    assert [m["content"] for m in changed] == ["w90", "w5 w6", "w91", "w8 w7"] and CHAT[-1]["content"] == "w7"
    for bad in ([{"role": "system", "content": "x"}], [{"role": "user", "content": [{"type": "image"}]}]):
        with pytest.raises(ValueError, match="last user message is text"):
            with_context(bad, "w8 ")


def test_the_teachers_prompt_is_the_students_with_the_contexts_tokens_inside() -> None:
    plain = render(CHAT)
    assert teacher_prompt(CHAT, "", render, plain, 0) == plain
    prompt_made = teacher_prompt(CHAT, "w8 w9 ", render, plain, 2)
    assert prompt_made == [2, 90, 3, 2, 5, 6, 3, 2, 91, 3, 2, 8, 9, 7, 3, 4]
    with pytest.raises(ValueError, match=r"adds 2 tokens, above opd.context.max_tokens=1"):
        teacher_prompt(CHAT, "w8 w9 ", render, plain, 1)
    for other in (plain[1:], [*plain, 5]):
        with pytest.raises(ValueError, match="no tools, no turns"):
            teacher_prompt(CHAT, "w8 ", render, other, 9)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="context '1c' is already registered"):
        register_context("1c")(lambda sample: "")
