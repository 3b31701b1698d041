"""Templates: what is put on comes off again, what others have put on does too, and the rest of a prompt stays."""

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_verl.config.errors import ConfigError
from opd_verl.data.__main__ import main
from opd_verl.data.files import make_table, write_table
from opd_verl.data.rows import BadRow, bare_question, last_user, templated
from opd_verl.data.template import share
from opd_verl.data.templates import TEMPLATES, fill, strip, template_text, unfill

BOXED = " Please reason step by step, and put your final answer within \\boxed{}."
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n1+1?\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
QUESTIONS = st.text(min_size=1).filter(str.strip)
KNOWN = st.sampled_from(list(TEMPLATES.values()))
CUSTOM = (
    st.tuples(st.text(max_size=20), st.text(max_size=20))
    .map("{question}".join)
    .filter(lambda text: text.count("{question}") == 1)
)


def row(content: Any = "1+1?", **extra_info: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": content}], "extra_info": extra_info or None}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_table(make_table(rows), path)
    return path


def prompts(path: Path) -> list[str]:
    return [messages[-1]["content"] for messages in pq.read_table(path)["prompt"].to_pylist()]


def test_the_known_templates_are_the_papers_words() -> None:
    assert fill(TEMPLATES["boxed"], "1+1?") == "1+1?" + BOXED
    assert fill(TEMPLATES["dapo"], "1+1?") == DAPO
    assert fill(TEMPLATES["none"], "1+1?") == "1+1?"


@given(QUESTIONS, KNOWN)
def test_a_known_template_comes_off_again(question: str, template: str) -> None:
    assert strip(fill(template, question)) == strip(question)


@given(QUESTIONS, CUSTOM)
def test_any_template_comes_off_again_when_it_is_named(question: str, template: str) -> None:
    assert unfill(template, fill(template, question)) == question
    assert strip(fill(template, question), template) == strip(question)


@given(QUESTIONS, st.lists(KNOWN, max_size=4))
def test_templates_over_templates_come_off_together(question: str, templates: list[str]) -> None:
    text = question
    for template in templates:
        text = fill(template, text)
    assert strip(text) == strip(question) == strip(strip(text))


@pytest.mark.parametrize(
    "text",
    [
        "1+1?" + BOXED,
        "1+1?" + BOXED.replace("{}", "{{}}"),
        "1+1?" + BOXED * 2,
        "1+1?\n\n" + BOXED.strip() + "\n",
        "1+1?" + BOXED.rstrip("."),
        BOXED.strip() + "\n\n1+1?",
        "1+1? Let's think step by step and output the final answer within \\boxed{}.",
        '1+1? Let\u2019s think step by step and output the final answer after "####".',
        DAPO,
        DAPO.replace('Answer:".', 'Answer:", and you do not need to use a \\boxed command.'),
    ],
)
def test_instructions_that_data_sets_bring_are_recognised(text: str) -> None:
    assert strip(text) == "1+1?"


@pytest.mark.parametrize(
    "text",
    ["Solve the following math problem.", "Put it within \\boxed{}.", "Answer: $Answer", "{question}", "step by step"],
)
def test_what_a_question_says_itself_stays(text: str) -> None:
    assert strip(text) == text


@pytest.mark.parametrize("name", ["boxd", "", "{question} {question}", "Problem: {0}"])
def test_what_is_no_template_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--template=.*boxed, dapo, none.*Remedy"):
        template_text(name)


def test_only_the_last_user_message_changes() -> None:
    system = {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."}
    before = [system, {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    actual = templated({"prompt": [*before, {"role": "user", "content": "1+1?"}]}, "1+1?", "Q: {question}")
    assert actual["prompt"] == [*before, {"role": "user", "content": "Q: 1+1?"}]
    assert actual["extra_info"] == {"question": "1+1?", "template": "Q: {question}"}
    assert bare_question(actual) == "1+1?" and last_user([*before, system]) == 1


@pytest.mark.parametrize("prompt", ["1+1?", [], [{"role": "system", "content": "x"}], [{"role": "user", "content": 1}]])
def test_a_prompt_without_a_users_text_is_bad(prompt: Any) -> None:
    with pytest.raises(BadRow, match="wrong type"):
        bare_question({"prompt": prompt})


@given(st.integers(1, 200), st.floats(0.01, 1.0), st.integers(0, 3))
def test_a_share_is_that_many_rows_and_the_seeds(rows: int, mix: float, seed: int) -> None:
    actual = share(rows, mix, seed)
    assert len(actual) == round(mix * rows) and actual <= set(range(rows)) and actual == share(rows, mix, seed)
    assert mix < 1 or actual == set(range(rows))


def test_the_command_goes_from_one_template_to_another_and_back(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", [row("1+1?" + BOXED, index=3), row("2+2?" + BOXED, index=4)])
    there, back = tmp_path / "there.parquet", tmp_path / "back.parquet"
    assert main(["template", str(source), "--template", "Problem: {question} =>", "--out", str(there)]) == 0
    assert prompts(there) == ["Problem: 1+1? =>", "Problem: 2+2? =>"]
    assert [info["index"] for info in pq.read_table(there)["extra_info"].to_pylist()] == [3, 4]
    assert main(["template", str(there), "--template", "boxed", "--out", str(back)]) == 0
    assert prompts(back) == prompts(source)


def test_a_template_of_someone_else_is_named_by_strip(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", [{"prompt": [{"role": "user", "content": "Q: 1+1? A:"}], "level": 5}])
    out = tmp_path / "out.parquet"
    command = ["template", str(source), "--template", "dapo", "--out", str(out)]
    assert main([*command, "--strip", "Q: {question} A:"]) == 0
    assert prompts(out) == [DAPO] and pq.read_table(out)["level"].to_pylist() == [5]
    assert main(command) == 0
    assert prompts(out) == [DAPO.replace("1+1?", "Q: 1+1? A:")]


def test_a_mix_leaves_the_other_prompts_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"{number}+1?{BOXED}" for number in range(10)]
    source, out = write(tmp_path / "in.parquet", [row(text) for text in texts]), tmp_path / "out.parquet"
    assert main(["template", str(source), "--template", "dapo", "--mix", "0.3", "--seed", "1", "--out", str(out)]) == 0
    changed = [place for place, text in enumerate(prompts(out)) if text != texts[place]]
    assert changed == sorted(share(10, 0.3, 1)) and len(changed) == 3
    assert all(strip(text) == strip(texts[place]) for place, text in enumerate(prompts(out)))
    assert "read 10, rewritten 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([row()], ["--mix", "0"], "--mix=0.0"),
        ([row()], ["--mix", "1.5"], "--mix=1.5"),
        ([row()], ["--template", "boxd"], "--template='boxd'"),
        ([{"extra_info": {"index": 1}}], [], "lacks the columns prompt"),
        ([row(), {"prompt": [{"role": "system", "content": "x"}]}], [], "row 2: wrong type"),
    ],
)
def test_the_command_refuses_with_the_reason(
    rows: list[dict[str, Any]], more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "in.parquet", rows), tmp_path / "out.parquet"
    assert main(["template", str(source), "--template", "none", "--out", str(out), *more]) == 1
    assert re.search(re.escape(message), capsys.readouterr().err) and not out.exists()
