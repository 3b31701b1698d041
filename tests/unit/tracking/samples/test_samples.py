"""Rollouts to look at: the text of tokens, the choice, the colours, the page, and what the trainer hands over."""

import json
import logging
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from opd_verl.config.sections import SamplesConfig, TokenConfig
from opd_verl.credit.inputs import RewardInputs
from opd_verl.tracking.samples import show
from opd_verl.tracking.samples.choose import Chosen, choose
from opd_verl.tracking.samples.html import STYLE, page, response_page, scale_of, shade_class, token_span
from opd_verl.tracking.samples.record import RolloutRecord, Token, from_json, to_json
from opd_verl.tracking.samples.show import SampleRollouts, Scored
from opd_verl.tracking.samples.tokens import token_texts

NAN = float("nan")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, as the smallest pieces of GPT-2's, Qwen's and Llama 3's tokenizers are."""
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_character_of_several_tokens_stands_at_its_last_one() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("aé🙂<b").input_ids
    assert len(ids) == 1 + 2 + 4 + 1 + 1
    assert token_texts(ids, tokenizer.decode) == ["a", "", "é", "", "", "", "🙂", "<", "b"]
    assert token_texts(ids[:5], tokenizer.decode) == ["a", "", "é", "", "\ufffd"], "cut within the character"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_the_texts_of_the_tokens_are_the_text(text: str) -> None:
    texts = token_texts(list(text.encode()), lambda ids: bytes(ids).decode(errors="replace"))
    assert "".join(texts) == text and len(texts) == len(text.encode())


@given(st.binary())
def test_broken_bytes_are_shown_and_hold_up_nothing(content: bytes) -> None:
    texts = token_texts(list(content), lambda ids: bytes(ids).decode(errors="replace"))
    letters = [chr(byte) for byte in content if byte < 128]
    assert len(texts) == len(content) and [letter for letter in "".join(texts) if letter < "\x80"] == letters


def test_spaces_that_a_decoder_drops_at_the_beginning_are_kept() -> None:
    tokenizer = tiny_tokenizer()  # joins words by spaces
    assert token_texts([5, 6, 7], tokenizer.decode) == ["w5", " w6", " w7"]
    assert token_texts([], tokenizer.decode) == []


def test_the_ends_and_some_by_lot_are_chosen_whatever_the_order() -> None:
    means = {"a": -1.0, "b": NAN, "c": -3.0, "d": -0.5, "e": -2.0, "f": -2.5}
    names = sorted(means)
    choices = choose(names, [means[name] for name in names], 4, seed=3)
    assert [item.why for item in choices] == ["lowest mean r_t", "highest mean r_t", "by lot", "by lot"]
    assert [names[item.row] for item in choices[:2]] == ["c", "d"]
    assert {names[item.row] for item in choices[2:]} < {"a", "e", "f"}
    turned = names[::-1]
    again = choose(turned, [means[name] for name in turned], 4, seed=3)
    assert [turned[item.row] for item in again] == [names[item.row] for item in choices]
    lots = {
        frozenset(choice.row for choice in choose(names, [means[name] for name in names], 3, seed))
        for seed in range(20)
    }
    assert len(lots) == 3, "the seed decides"


def test_few_rollouts_are_all_shown() -> None:
    assert choose(["a", "b"], [0.0, -1.0], 4, 0) == [Chosen(1, "lowest mean r_t"), Chosen(0, "highest mean r_t")]
    assert choose(["a"], [0.0], 4, 0) == [Chosen(0, "lowest mean r_t")] and choose(["a"], [NAN], 4, 0) == []
    assert [choice.row for choice in choose(list("abc"), [0.0, 1.0, 2.0], 1, 0)] == [0]


@pytest.mark.parametrize(("reward", "expected"), [(0.0, ""), (-2.0, "n8"), (2.0, "p8"), (9.0, "p8"), (NAN, "")])
def test_the_scale_goes_from_orange_over_none_to_blue(reward: float, expected: str) -> None:
    assert shade_class(reward, 2.0) == expected


@given(st.floats(0, 10), st.floats(0.01, 10))
def test_the_scale_is_symmetric(reward: float, scale: float) -> None:
    """The scale is as strong on both sides, and every shade has its rule."""
    negative, positive = shade_class(-reward, scale), shade_class(reward, scale)
    assert negative[1:] == positive[1:] and negative[:1] + positive[:1] in ("np", "")
    assert not negative or (f".{negative}{{background" in STYLE and f".{positive}{{background" in STYLE)


def test_negative_tokens_are_told_apart_without_colour() -> None:
    underlined = set(re.findall(r"\.([np]\d)(?=[^}]*\{text-decoration:underline)", STYLE))
    assert underlined == {f"n{level}" for level in range(1, 9)}


def token(reward: float, text: str = "x", trained: bool = True) -> Token:
    return Token(7, text, -1.25, -1.25 + reward, reward, trained)


def sample(*tokens: Token, prompt: str = "p", correct: bool | None = True) -> RolloutRecord:
    return RolloutRecord("1_0_0", "by lot", prompt, tokens, -0.5, 1.0, correct)


def test_an_outlier_and_masked_tokens_do_not_set_the_scale() -> None:
    assert scale_of([sample(*[token(-1.0)] * 99, token(50.0), token(9.0, trained=False))]) == 1.0
    assert scale_of([sample(token(0.0))]) == scale_of([]) == 1.0


def test_a_token_says_what_it_is_made_of() -> None:
    span = token_span(token(-0.5), 1.0)
    assert unescape(span.split('title="')[1]) == 'id 7\nlog p -1.2500\nlog q -1.7500\nr_t -0.5000">x</span>'
    assert 'class="n4"' in span
    masked = token_span(token(-0.5, trained=False), 1.0)
    assert 'class="masked"' in masked and masked.endswith('masked">x</span>')
    assert token_span(token(-0.5), 1.0, title=False) == '<span class="n4">x</span>'
    known = token_span(Token(7, "x", -1.0, -0.5, 0.5, True, 0.25, 1.5, 1), 1.0)
    assert "r_t 0.5000\nQ1\nstudent entropy 0.2500\nteacher entropy 1.5000" in unescape(known)


def test_json_gives_the_sample_back_and_has_null_for_nan() -> None:
    full = Token(7, "</x>", -1.0, -0.5, 0.5, True, 0.25, 1.5, 1, [("</x>", -0.5), ("y", -1.0)])
    item = sample(full, token(-0.25), prompt="<p>", correct=None)
    assert from_json(json.loads(json.dumps(to_json(item)))) == replace(item, tokens=list(item.tokens))
    unknown = to_json(sample(Token(7, "x", -1.0, NAN, NAN, False)))["tokens"][0]
    assert unknown["log_q"] is unknown["reward"] is None and "NaN" not in json.dumps(unknown)


def test_everything_is_escaped() -> None:
    evil = '</span><script>alert("1")</script>&'
    text = page(10, [sample(token(0.1, evil), prompt=evil)]) + response_page(sample(token(0.1, evil)), 1.0)
    assert "<script" not in text and text.count("&lt;script&gt;") == 3 and "&amp;" in text


def test_the_page_is_whole_and_shows_what_else_is_known() -> None:
    text = page(10, [sample(token(0.1, "a\n"), token(-0.2, "")), sample(token(0.3), correct=False)])
    assert "http" not in text and text.startswith("<!doctype html>") and text.count("<tr>") == 1 + 2
    assert ">a↵\n</span>" in text and ">·</span>" in text
    assert "correct<" in text and "not correct" in text and "-0.5000" in text and "nats: -0.3 <span" in text


class Loggers:
    """verl's Tracking, as far as the samples use it."""

    def __init__(self, *names: str) -> None:
        self.logger = dict.fromkeys(names)
        self.logged: list[tuple[dict[str, Any], int, list[str]]] = []

    def log(self, data: dict[str, Any], step: int, backend: list[str]) -> None:
        self.logged.append((data, step, backend))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Scored:
    """Two rollouts and one of verl's padding; the second one's last token has weight 0."""
    keys, prompts = ["b_0_0", "a_0_0", "pad"], {"b_0_0": [2, 3], "a_0_0": [4], "pad": [1]}

    def get(keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, Any]:
        assert (partition_id, select_fields) == ("train", ["prompts"])
        return {"prompts": torch.nested.nested_tensor([prompts[key] for key in keys], layout=torch.jagged)}

    monkeypatch.setattr(show.tq, "kv_batch_get", get)
    log_p = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.25, 0.0], [-9.0, 0.0, 0.0]])
    log_q = torch.tensor([[-1.5, -2.5, -3.5], [-0.25, -0.25, 0.0], [-1.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    inputs = RewardInputs(log_p, log_q, mask, -log_p, torch.tensor([0.0, 1.0, 0.0]), torch.tensor([False, True, False]))
    return Scored(
        SimpleNamespace(keys=keys, partition_id="train", tags=[{}, {}, {"is_padding": True}]),
        torch.nested.nested_tensor([[10, 11, 1], [12, 1], [1]], layout=torch.jagged),
        inputs,
        (log_q - log_p) * mask,
        torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    )


def sampler(folder: Path, every: int = 10) -> SampleRollouts:
    config = {"trainer": {"default_local_dir": str(folder)}, "actor_rollout_ref": {"rollout": {"seed": 0}}}
    return SampleRollouts(SamplesConfig(every=every), OmegaConf.create(config), tiny_tokenizer())


def test_the_numbers_of_a_step_come_out_by_value(scored: Scored, tmp_path: Path) -> None:
    low, high = sampler(tmp_path).collect(scored, 10)
    assert (low.name, low.prompt, low.mean_reward, low.correct) == ("b_0_0", "w2 w3", -0.5, False)
    assert low.tokens[1] == Token(11, " w11", -2.0, -2.5, -0.5, True, 2.0, None, 4) and len(low.tokens) == 3
    assert (high.name, high.prompt, high.mean_reward, high.score) == ("a_0_0", "w4", 0.125, 1.0)
    assert [item.trained for item in high.tokens] == [True, False] and high.tokens[0].reward == 0.25


def test_the_teachers_entropies_are_shown_where_they_are_known(scored: Scored, tmp_path: Path) -> None:
    inputs = replace(scored.inputs, teacher_entropy=scored.inputs.student_entropy + 0.5)
    low, _ = sampler(tmp_path).collect(replace(scored, inputs=inputs), 10)
    assert [item.teacher_entropy for item in low.tokens] == [1.5, 2.5, 3.5]


def test_the_teachers_top_k_and_the_runs_own_threshold(scored: Scored, tmp_path: Path) -> None:
    ids = torch.tensor([[7, 8], [8, 9], [9, 7], [5, 6], [6, 5], [4, 3]])
    offsets = torch.tensor([0, 3, 5, 6])
    first, second = (torch.nested.nested_tensor_from_jagged(item, offsets) for item in (ids, -ids.float() / 10))
    inputs = replace(scored.inputs, tokens=TokenConfig(low_entropy=2.5))
    low, high = sampler(tmp_path).collect(replace(scored, top=(first, second), inputs=inputs), 10)
    assert low.tokens[1].top == [("w8", pytest.approx(-0.8)), ("w9", pytest.approx(-0.9))]
    assert high.tokens[0].top == [("w5", pytest.approx(-0.5)), ("w6", pytest.approx(-0.6))]
    assert [item.quadrant for item in low.tokens] == [3, 3, 4], "committed below 2.5 nats"


@pytest.mark.parametrize(("every", "steps"), [(10, [10, 20]), (0, [])])
def test_a_page_and_its_json_after_every_so_many_steps(
    every: int, steps: list[int], scored: Scored, tmp_path: Path
) -> None:
    rollouts = sampler(tmp_path, every)
    for step in range(1, 21):
        rollouts.show(scored, step, Loggers("console"))
    expected = [f"step_{step:06d}.{kind}" for step in steps for kind in ("html", "json")]
    assert [file.name for file in sorted(tmp_path.glob("samples/*"))] == expected
    for step in steps:
        content = json.loads((tmp_path / "samples" / f"step_{step:06d}.json").read_text())
        assert content["step"] == step
        assert [from_json(rollout) for rollout in content["rollouts"]] == rollouts.collect(scored, step)


def test_wandb_gets_a_table_whose_responses_are_pages(scored: Scored, tmp_path: Path) -> None:
    loggers = Loggers("console", "wandb")
    sampler(tmp_path).show(scored, 10, loggers)
    ((data, step, backend),) = loggers.logged
    (first, second) = data["opd/samples"].data
    assert (step, backend) == (10, ["wandb"]) and first[:3] == ["b_0_0", "lowest mean r_t", "w2 w3"]
    assert second[4:] == [2, 0.125, 1.0, True] and "w12</span>" in second[3].html


def test_a_full_disk_ends_no_training_and_is_said_once(
    scored: Scored, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "samples").write_text("a file where the folder should be")
    rollouts = sampler(tmp_path)
    with caplog.at_level(logging.WARNING, "opd_verl"):
        logging.getLogger("opd_verl").propagate = True
        for step in (10, 20):
            rollouts.show(scored, step, Loggers())
    assert [record.getMessage() for record in caplog.records] == [
        "no samples of step 10 (said once): the training continues"
    ]
