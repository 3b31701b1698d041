"""The quickstart's task and tokenizer: right and careless work, disjoint splits, ids that survive the round trip."""

import random
import re
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from opd_verl.quickstart.task import (
    COLUMNS,
    LARGEST,
    SMALLEST,
    Addition,
    careless_solution,
    chat,
    distinct_problems,
    problem_stream,
    question,
    solution,
    write_parquet,
)
from opd_verl.quickstart.tokenizer import PAD, TURN_END, build_tokenizer, encode_prompts, encode_responses

OPERANDS = st.integers(SMALLEST, LARGEST)
PROBLEMS = st.builds(Addition, OPERANDS, OPERANDS)
FORGOTTEN = st.lists(st.booleans(), min_size=COLUMNS, max_size=COLUMNS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def boxed(text: str) -> str:
    return re.fullmatch(r".*\\boxed\{(\d+)\}", text, re.DOTALL).group(1)


def test_known_solution() -> None:
    assert solution(Addition(486, 378)) == "6+8+0=14\n8+7+1=16\n4+3+1=08\n\\boxed{864}"


def test_known_careless_solution() -> None:
    assert solution(Addition(486, 578), [True, False, True]) == "6+8+0=14\n8+7+0=15\n4+5+1=10\n\\boxed{54}"


@given(PROBLEMS)
def test_correct_work_boxes_the_sum(problem: Addition) -> None:
    assert boxed(solution(problem)) == problem.answer == str(problem.left + problem.right)


@given(PROBLEMS, FORGOTTEN)
def test_every_column_line_is_true_arithmetic(problem: Addition, forgotten: list[bool]) -> None:
    for line in solution(problem, forgotten).splitlines()[:COLUMNS]:
        terms, column_sum = line.split("=")
        assert sum(map(int, terms.split("+"))) == int(column_sum)


@given(PROBLEMS, FORGOTTEN)
def test_a_forgotten_carry_never_raises_the_answer(problem: Addition, forgotten: list[bool]) -> None:
    assert int(boxed(solution(problem, forgotten))) <= int(problem.answer)


def test_an_author_who_misadds_is_wrong_wherever_those_digits_meet() -> None:
    problem = Addition(123, 416)
    assert solution(problem, misadded=(9,)) == "3+6+0=10\n2+1+1=04\n1+4+0=05\n\\boxed{540}"
    assert solution(problem, misadded=(10,)) == solution(problem), "the carry is no digit"


def test_carelessness_is_a_probability() -> None:
    problems = distinct_problems("train", 300, seed=0)

    def accuracy(forget: float) -> float:
        rng = random.Random(0)
        return sum(boxed(careless_solution(p, forget, rng)) == p.answer for p in problems) / len(problems)

    assert accuracy(0.0) == 1.0
    assert accuracy(0.0) > accuracy(0.5) > accuracy(1.0)


def test_splits_are_disjoint_and_repeatable() -> None:
    train, heldout = (set(distinct_problems(split, 2000, seed=0)) for split in ("train", "heldout"))
    assert len(train) == len(heldout) == 2000
    assert not train & heldout
    assert list(islice(problem_stream("train", 1), 50)) == list(islice(problem_stream("train", 1), 50))
    assert list(islice(problem_stream("train", 1), 50)) != list(islice(problem_stream("train", 2), 50))


def test_parquet_has_verls_columns(tmp_path: Path) -> None:
    train, heldout = write_parquet(tmp_path, train=12, heldout=5, seed=3)
    frame = pd.read_parquet(train)
    row, problem = frame.iloc[7], distinct_problems("train", 12, seed=3)[7]
    assert list(frame) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert list(row["prompt"]) == chat(problem)
    assert row["reward_model"] == {"style": "rule", "ground_truth": problem.answer}
    assert row["extra_info"] == {"split": "train", "index": 7}
    assert len(frame) == 12 and len(pd.read_parquet(heldout)) == 5


def test_digits_are_single_tokens_and_text_is_short(tokenizer: PreTrainedTokenizerFast) -> None:
    problem = Addition(999, 999)
    [prompt], [response] = encode_prompts(tokenizer, [problem]), encode_responses(tokenizer, [solution(problem)])
    for ids in (prompt, response):
        assert all(len(token) == 1 for token in tokenizer.batch_decode([[i] for i in ids]) if re.search(r"\d", token))
    assert len(prompt) <= 32
    assert 25 <= len(response) <= 45


@settings(deadline=None)
@given(text=st.text(max_size=40).filter(lambda text: "<|" not in text))
def test_any_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@settings(deadline=None, max_examples=50)
@given(problem=PROBLEMS)
def test_joined_ids_are_the_ids_of_the_joined_text(tokenizer: PreTrainedTokenizerFast, problem: Addition) -> None:
    [prompt], [response] = encode_prompts(tokenizer, [problem]), encode_responses(tokenizer, [solution(problem)])
    assert tokenizer(tokenizer.decode(prompt + response), add_special_tokens=False)["input_ids"] == prompt + response


def test_template_and_special_tokens(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    problem = Addition(123, 456)
    text = loaded.apply_chat_template(chat(problem), add_generation_prompt=True, tokenize=False)
    assert text == f"<|im_start|>user\n{question(problem)}<|im_end|>\n<|im_start|>assistant\n"
    assert (loaded.pad_token, loaded.eos_token) == (PAD, TURN_END)
    assert encode_responses(loaded, ["1"])[0][-1] == loaded.convert_tokens_to_ids(TURN_END)
    [prompt] = encode_prompts(loaded, [problem])
    assert prompt[0] == loaded.convert_tokens_to_ids("<|im_start|>") and loaded.decode(prompt) == text
