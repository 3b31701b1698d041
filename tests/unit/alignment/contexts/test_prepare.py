"""Contexts of the alignment command: sampled until there are enough, counted, and screened; no model answers here."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling_harness import FakeGenerate, problem, save_model

from opd_verl.alignment.contexts.prepare import PreparedContexts, prepare_contexts
from opd_verl.alignment.contexts.prompts import messages_with, teacher_prompt_ids
from opd_verl.alignment.contexts.rounds import round_sizes
from opd_verl.alignment.contexts.screening import screen_contexts
from opd_verl.alignment.contexts.screening_table import screen, to_markdown
from opd_verl.alignment.contexts.settings import ContextSettings
from opd_verl.config.errors import ConfigError
from opd_verl.contexts import CONTEXT_HOOKS
from opd_verl.eval.estimators import stratified_replicates
from opd_verl.metrics.estimate import ENDS
from opd_verl.sampling import judging
from opd_verl.sampling.generate import GenerationTask
from opd_verl.sampling.prompts import Model, open_model
from opd_verl.sampling.rollouts import Sampler
from opd_verl.sampling.rows import identities
from opd_verl.sampling.settings import SamplingSettings
from opd_verl.sampling.shards import Request, Response, request_seed

SETTINGS = SamplingSettings(n=4, max_tokens=16, seed=5, prompts_per_shard=4)
QUESTIONS = 9
EVERY = ["1c", "3c", "1c1w"]


def say(request: Request) -> Response:
    """A text that repeats now and then and boxes 0, 1 or 2; every fifth seed is cut, every seventh says nothing."""
    text = f"t{request.seed % 40} \\boxed{{{request.seed % 3}}}"
    return Response([3, 1], "" if request.seed % 7 == 0 else text, request.seed % 5 != 0)


def say_all(requests: Sequence[Request]) -> list[Response]:
    return [say(request) for request in requests]


def think(request: Request) -> Response:
    """A summary behind its reasoning; one seed in two says nothing behind it, and one in five is cut."""
    text = f"<think>t1 \\boxed{{9}}</think>\n\n{'' if request.seed % 2 else f's{request.seed} boxed'} "
    return Response([3, 1], text, request.seed % 5 != 0)


@dataclass
class Recorded:
    """A FakeGenerate that notes whom it was asked for, and may answer some folders otherwise, or die in one."""

    fake: FakeGenerate = field(default_factory=lambda: FakeGenerate(say_all))
    others: dict[str, FakeGenerate] = field(default_factory=dict)
    dies_in: str | None = None
    works: list[GenerationTask] = field(default_factory=list)

    def __call__(self, work: GenerationTask) -> None:
        folder = work.parts[0].folder
        if self.dies_in and self.dies_in in str(folder):
            raise KeyboardInterrupt
        self.works.append(work)
        self.others.get(folder.parent.name, self.fake)(work)

    @property
    def asked(self) -> int:
        """Responses, of whatever folder."""
        return self.fake.asked + sum(other.asked for other in self.others.values())

    def of(self, name: str) -> list[GenerationTask]:
        """The generation tasks of the folder `name`."""
        return [work for work in self.works if work.parts[0].folder.parent.name == name]


@pytest.fixture
def student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A tiny model; the judge works in a thread."""
    monkeypatch.setattr(judging, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    return open_model("student", save_model(tmp_path / "student"))


def questions(count: int = QUESTIONS, **extra: Any) -> pa.Table:
    return pa.Table.from_pylist(
        [row | {"extra_info": row["extra_info"] | extra} for row in (problem(index) for index in range(count))]
    )


def prepare(
    student: Model, out: Path, contexts: ContextSettings, generate: Any, rows: pa.Table | None = None
) -> PreparedContexts:
    sampler = Sampler(SETTINGS, workers=1, generate=generate)
    return prepare_contexts(student, questions() if rows is None else rows, contexts, sampler, out)


def infos(prepared: PreparedContexts) -> list[dict[str, Any]]:
    return prepared.rows["extra_info"].to_pylist()


def by_hand(trials: int, per_round: int, correct: int, wrong: int) -> list[tuple[list[str], list[str], int, int]]:
    """Correct texts, wrong texts, responses and cut ones of every question, by a plain loop."""
    rows = [problem(index) for index in range(QUESTIONS)]
    state: list[tuple[list[str], list[str], int, int]] = [([], [], 0, 0) for _ in rows]
    done, number = 0, 0
    while done < trials:
        size = min(per_round, trials - done)
        asked = [place for place, (good, bad, *_) in enumerate(state) if len(good) < correct or len(bad) < wrong]
        names = identities([rows[place]["prompt"] for place in asked])
        for place, name in zip(asked, names, strict=True):
            good, bad, responses, cut = state[place]
            for trial in range(size):
                said = say(Request([], request_seed(request_seed(SETTINGS.seed, "contexts/self", number), name, trial)))
                right = said.text.endswith(f"{{{place % 3}}}")
                mine = good if right else bad
                if said.finished and said.text and said.text not in mine:
                    mine.append(said.text)
                responses, cut = responses + 1, cut + (not said.finished)
            state[place] = good, bad, responses, cut
        done, number = done + size, number + 1
    return state


@pytest.mark.parametrize(("trials", "per_round"), [(60, 8), (11, 4), (14, 3)])
def test_texts_and_counts_are_those_of_a_plain_loop(
    student: Model, tmp_path: Path, trials: int, per_round: int
) -> None:
    generate = Recorded()
    contexts = ContextSettings(EVERY, trials=trials, per_round=per_round)
    prepared = prepare(student, tmp_path / "out", contexts, generate)
    state, counts = by_hand(trials, per_round, 3, 1), prepared.counts
    assert [(info["correct"], info["wrong"]) for info in infos(prepared)] == [(g[:3], b[:1]) for g, b, *_ in state]
    assert counts.own is not None and counts.large is None and counts.both is None
    assert counts.own.questions == sum(bool(good) for good, *_ in state)
    assert counts.own.responses == sum(responses for *_, responses, _ in state) == generate.fake.asked
    assert counts.own.cut == sum(cut for *_, cut in state)
    assert counts.lacking["3c"] == [row for row, (good, *_) in enumerate(state) if len(good) < 3]
    assert prepared.usable == [row for row, (good, bad, *_) in enumerate(state) if len(good) >= 3 and bad]
    if trials == 60:
        assert prepared.usable == list(range(QUESTIONS)) and len({*(entry[2] for entry in state)}) > 1, (
            "some stop early"
        )
    for row in prepared.rows.take(prepared.usable).to_pylist():
        assert all(text in CONTEXT_HOOKS["3c"](row) for text in row["extra_info"]["correct"])
    kept = json.loads((tmp_path / "out" / "contexts.json").read_text())["counts"]
    assert kept["usable"] == prepared.usable and kept["own"]["responses"] == counts.own.responses
    table = (tmp_path / "out" / "contexts.md").read_text()
    assert f"| 3c | {QUESTIONS - len(counts.lacking['3c'])} |" in table
    assert f"| self | {counts.own.questions} | {counts.own.responses} | {counts.own.cut} |" in table


def test_each_context_asks_for_what_it_shows_alone(student: Model, tmp_path: Path) -> None:
    prepared = prepare(student, tmp_path / "out", ContextSettings(["1c"]), Recorded())
    assert [info["correct"] for info in infos(prepared)] == [good[:1] for good, *_ in by_hand(60, 8, 1, 0)]
    assert "wrong" not in infos(prepared)[0]


def test_nobody_is_asked_more_than_the_trials(student: Model, tmp_path: Path) -> None:
    """The last two questions are never answered; the others stop when they have one."""
    rows = questions().to_pylist()
    for row in rows[-2:]:
        row["reward_model"]["ground_truth"] = "7"
    contexts = ContextSettings(["1c"], trials=20, per_round=8)
    prepared = prepare(student, tmp_path / "out", contexts, Recorded(), pa.Table.from_pylist(rows))
    files = sorted((tmp_path / "out" / "self").glob("round-*.parquet"))
    sizes = [[len(row) for row in pq.read_table(file)["scores"].to_pylist()] for file in files]
    assert [size[0] for size in sizes] == round_sizes(20, 8) == [8, 8, 4] and len(sizes[-1]) >= 2
    assert prepared.counts.lacking["1c"] == [7, 8] and prepared.usable == list(range(7))
    said = [row for file in files for row in pq.read_table(file)["responses"].to_pylist()[-1]]
    assert len(said) == 20 and len(set(said)) > 15, "no round repeats another's seeds"


@pytest.mark.parametrize("place", ["self/round-01", "summaries/round-01", "large/round-00"])
def test_what_was_killed_goes_on_with_the_same_texts(student: Model, tmp_path: Path, place: str) -> None:
    contexts = ContextSettings(["3c", "sum_1c1w", "1c_large"], large=student.path, per_round=4)

    def generate() -> Recorded:
        return Recorded(others={"summaries": FakeGenerate(lambda asked: [think(request) for request in asked])})

    undisturbed = generate()
    whole = prepare(student, tmp_path / "out", contexts, undisturbed)
    killed, again = replace(generate(), dies_in=place), generate()
    with pytest.raises(KeyboardInterrupt):
        prepare(student, tmp_path / "elsewhere", contexts, killed)
    assert prepare(student, tmp_path / "elsewhere", contexts, again).rows.equals(whole.rows)
    assert killed.asked + again.asked == undisturbed.asked and killed.asked
    nothing = generate()
    prepare(student, tmp_path / "elsewhere", contexts, nothing)
    assert not nothing.asked


def test_the_larger_model_gives_its_own_solutions(student: Model, tmp_path: Path) -> None:
    large, generate = save_model(tmp_path / "large", 1), Recorded()
    contexts = ContextSettings(["1c", "1c_large"], large=large, trials=4, per_round=2)
    prepared = prepare(student, tmp_path / "out", contexts, generate)
    assert {work.model for work in generate.of("large")} == {large}
    assert {work.model for work in generate.of("self")} == {student.path}
    assert {work.settings.temperature for work in generate.works} == {0.7}
    rows_made, counts = infos(prepared), prepared.counts
    assert [item["correct"] for item in rows_made] != [item["correct_large"] for item in rows_made]
    assert counts.own is not None and counts.large is not None
    assert counts.large.questions == sum(bool(item["correct_large"]) for item in rows_made)
    assert (
        counts.both
        == len(prepared.usable)
        == sum(bool(item["correct"] and item["correct_large"]) for item in rows_made)
    )
    row = prepared.rows.take([prepared.usable[0]]).to_pylist()[0]
    assert row["extra_info"]["correct_large"][0] in CONTEXT_HOOKS["1c_large"](row)


def test_summaries_are_tried_again_and_lose_their_reasoning(student: Model, tmp_path: Path) -> None:
    summariser = save_model(tmp_path / "summariser", 1)
    generate = Recorded(others={"summaries": FakeGenerate(lambda asked: [think(request) for request in asked])})
    contexts = ContextSettings(["sum_1c1w"], summariser=summariser, max_tokens=12)
    sampler = Sampler(replace(SETTINGS, suffix="w9"), workers=1, generate=generate)
    prepared = prepare_contexts(student, questions(), contexts, sampler, tmp_path / "out")
    rows_made, files = infos(prepared), sorted((tmp_path / "out" / "summaries").glob("round-*.parquet"))
    works = generate.of("summaries")
    assert len(works) == len(files) > 1 and {work.model for work in works} == {summariser}
    assert {(work.settings.max_tokens, work.settings.suffix, work.settings.n) for work in works} == {(12, "", 1)}
    said = {}
    for row in (row for file in files for row in pq.read_table(file).to_pylist()):
        text = row["responses"][0].split("</think>")[1].strip() if row["finished"][0] else ""
        said.setdefault(row["prompt"][0]["content"], []).append(text)
    assert len(said) == 2 * QUESTIONS == prepared.counts.summaries
    for texts in said.values():
        assert not any(texts[:-1]) and (texts[-1] or len(texts) == 3), "asked again until there is one, three times"
    for prompt, texts in said.items():
        (place,) = [p for p in range(QUESTIONS) if f"\n\n{problem(p)['prompt'][0]['content']}\n\n" in prompt]
        right = prompt.split("Solution:\n\n")[1].split("\n\n")[0].endswith(f"{{{place % 3}}}")
        own = rows_made[place]["correct_summaries" if right else "wrong_summaries"]
        assert own == [text for text in texts[-1:] if text]
    missing = sum(not texts[-1] for texts in said.values())
    assert prepared.counts.summaries_missing == missing > 0
    assert prepared.counts.summaries_judged_otherwise == sum(len(item["correct_summaries"]) for item in rows_made), (
        "no box"
    )
    assert prepared.usable == [
        p for p, item in enumerate(rows_made) if item["correct_summaries"] and item["wrong_summaries"]
    ]
    assert "correct" not in rows_made[0]


def test_judges_may_score_wrong_answers_below_zero(
    student: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strict(solution_str: str, ground_truth: str, **_: Any) -> float:
        return 2.0 * solution_str.endswith(f"{{{ground_truth}}}") - 1.0

    plain = prepare(student, tmp_path / "plain", ContextSettings(["1c1w"]), Recorded())
    monkeypatch.setattr(judging, "load_reward", lambda reward: strict)
    assert infos(prepare(student, tmp_path / "out", ContextSettings(["1c1w"]), Recorded())) == infos(plain)


def test_texts_that_are_replaced_are_counted_and_a_context_of_ones_own_reads_the_data(
    student: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTEXT_HOOKS, "own", lambda sample: f"{sample['extra_info']['hint']} {sample['index']} ")
    rows = questions(correct=["old"], wrong=["old"], hint="w8")
    prepared = prepare(student, tmp_path / "out", ContextSettings(["1c", "own"]), Recorded(), rows)
    assert (
        prepared.counts.replaced == QUESTIONS
        and "Sampled texts replaced" in (tmp_path / "out" / "contexts.md").read_text()
    )
    assert all(info["correct"] != ["old"] and info["wrong"] == ["old"] for info in infos(prepared))
    row = prepared.rows.take([2]).to_pylist()[0]
    assert messages_with(row, "own")[0]["content"] == "w8 2 w5 w5"


def test_without_contexts_nothing_is_asked(student: Model, tmp_path: Path) -> None:
    generate = Recorded()
    prepared = prepare(student, tmp_path / "out", ContextSettings(), generate)
    assert not generate.works and prepared.rows.equals(questions()) and prepared.usable == list(range(QUESTIONS))
    assert not (tmp_path / "out").exists()


def test_the_teachers_prompt_has_context_suffix_and_template_options(student: Model) -> None:
    row = problem(2) | {"extra_info": {"correct": ["w20 w21"]}}
    settings = replace(SETTINGS, suffix="w9", chat_template_kwargs={"hint": "w8"})
    ids = teacher_prompt_ids(student, row, "1c", settings)
    words = [token_id for token_id in ids if token_id]  # 0 is an unknown word
    assert words == [20, 21, 5, 5, 9, 2, 8] and ids[-5:] == [5, 5, 9, 2, 8]
    with pytest.raises(ValueError, match="needs 3 texts"):
        teacher_prompt_ids(student, row, "3c", settings)


def test_a_prompt_that_does_not_fit_is_named(student: Model, tmp_path: Path) -> None:
    def long(request: Request) -> Response:
        return replace(said := say(request), text="w3 " * (30 if request.prompt_ids[0] == 7 else 1) + said.text)

    generate = Recorded(FakeGenerate(lambda asked: [long(item) for item in asked]))
    with pytest.raises(ConfigError, match=r"in row 4 of the prompts, with the context 3c,"):
        prepare(student, tmp_path / "out", ContextSettings(["1c", "3c"]), generate)
    with pytest.raises(ConfigError, match=r"in row 4 of the prompts, with the solution to summarise,"):
        generate = Recorded(
            FakeGenerate(lambda asked: [replace(long(item), text=long(item).text * 3) for item in asked])
        )
        prepare(student, tmp_path / "other", ContextSettings(["sum_1c"]), generate)
    large = open_model("student", student.path)
    short = replace(large, context=10)
    never = Recorded()
    with pytest.raises(ConfigError, match="of the prompts it exceeds the context of 10 tokens"):
        prepare(short, tmp_path / "third", ContextSettings(["1c"]), never)
    assert not never.works


def test_too_little_for_every_question_is_an_error_that_leaves_the_counts(student: Model, tmp_path: Path) -> None:
    generate = Recorded(FakeGenerate(lambda asked: [replace(say(request), finished=False) for request in asked]))
    with pytest.raises(ConfigError, match=r"no question of 9 has enough texts for all contexts \(1c 0;"):
        prepare(student, tmp_path / "out", ContextSettings(["1c"], trials=3), generate)
    assert "| 1c | 0 |" in (tmp_path / "out" / "contexts.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["2c"]}, r"contexts.names='2c': no such context \(there are: .*1c_large"),
        ({"names": ["1c", "1c"]}, "a context is named twice"),
        ({"names": ["1c_large"]}, "contexts.large=None"),
        ({"large": "/model"}, "contexts.large='/model': no context in contexts.names shows its solution"),
        ({"summariser": "/model"}, "contexts.summariser='/model': no context in contexts.names shows summaries"),
        ({"names": ["1c_large"], "large": "/nope"}, "contexts.large='/nope': no such model folder"),
        ({"trials": 0}, "contexts.trials=0: must be at least 1"),
        ({"per_round": 0}, "contexts.per_round=0"),
        ({"max_tokens": 0}, "contexts.max_tokens=0"),
        ({"screen": -1}, "contexts.screen=-1"),
        ({"names": [], "screen": 4}, "contexts.screen=4: there is no context"),
        ({"temperature": 0.0}, "contexts.temperature=0.0: greedy"),
    ],
)
def test_bad_settings_are_refused(student: Model, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    never = Recorded()
    with pytest.raises(ConfigError, match=message):
        prepare(student, tmp_path / "out", replace(ContextSettings(["1c"]), **change), never)
    assert not never.works


def test_a_prompt_without_text_is_refused(student: Model, tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([problem(0) | {"prompt": [{"role": "system", "content": "w5"}]}])
    with pytest.raises(ConfigError, match=r"prompts='row 0': .*no user message"):
        prepare(student, tmp_path / "out", ContextSettings(["1c"]), Recorded(), rows)


BASELINE = np.array([0.125, 0.25, 0.5, 0.75, 0.8, 1.0])


def test_the_screening_table_by_hand() -> None:
    helped = np.array([0.5, 0.5, 1.0, 1.0, 1.0, 1.0])
    base, item = screen(BASELINE, {"1c": helped}, 200, 3)
    assert {kind: (cell.accuracy, cell.questions) for kind, cell in base.bins.items()} == {
        "hard": (0.125, 1),
        "medium": (0.5, 3),
        "easy": (0.9, 2),
    }
    assert [cell.accuracy for cell in item.bins.values()] == [0.5, pytest.approx(2.5 / 3), 1.0]
    assert base.difference is None and item.difference is not None and item.questions == 6
    assert item.accuracy.value == pytest.approx(5 / 6)
    assert item.difference.value == pytest.approx(5 / 6 - 3.425 / 6)
    paired = np.quantile(stratified_replicates([helped - BASELINE], 200, 3), ENDS)
    assert [item.difference.low, item.difference.high] == pytest.approx(paired.tolist())
    lines = to_markdown([base, item], 2, 32).splitlines()
    assert lines[4].startswith("| baseline | 12.5 (1) | 50.0 (3) | 90.0 (2) | 57.1 [") and lines[4].endswith("| 6 |  |")
    assert "| 26.2 [" in lines[5] and "2 questions that the baseline never answers" in lines[-1]


def test_bins_without_questions_are_empty() -> None:
    rows = screen(np.ones(3), {"1c": np.zeros(3)}, 100, 0)
    assert rows[1].bins["hard"].questions == 0 and "| 1c |  |  | 0.0 (3) |" in to_markdown(rows, 0, 4)
    nobody = screen(np.zeros(0), {"1c": np.zeros(0)}, 100, 0)
    assert nobody[1].questions == 0 and np.isnan(nobody[1].accuracy.value)


@given(st.lists(st.integers(0, 32), min_size=1))
def test_bins_partition_what_is_ever_answered_and_their_means_make_the_whole(counts: list[int]) -> None:
    rates = np.array(counts) / 32
    if (rates := rates[rates > 0]).size:
        (row,) = screen(rates, {}, 100, 0)
        assert sum(bin_.questions for bin_ in row.bins.values()) == row.questions == len(rates)
        whole = sum(bin_.accuracy * bin_.questions for bin_ in row.bins.values() if bin_.questions) / row.questions
        assert whole == pytest.approx(row.accuracy.value)


def pass_rates(path: Path) -> list[float]:
    return [sum(score > 0.5 for score in row) / len(row) for row in pq.read_table(path)["scores"].to_pylist()]


def test_the_student_answers_behind_every_context(student: Model, tmp_path: Path) -> None:
    contexts, out, generate = ContextSettings(["1c", "1c1w"], screen=4), tmp_path / "out", Recorded()
    sampler = Sampler(SETTINGS, workers=1, generate=generate)
    prepared = prepare_contexts(student, questions(), contexts, sampler, out)
    before = generate.fake.asked
    screening = screen_contexts(student, prepared, contexts, sampler, out, resamples=100)
    files = {name: out / "screening" / f"{name}.parquet" for name in ("baseline", "1c", "1c1w")}
    base = pass_rates(files["baseline"])
    assert screening.excluded == [row for row in range(QUESTIONS) if base[row] == 0.0] != []
    assert screening.screened == [row for row in range(QUESTIONS) if base[row] > 0.0]
    assert generate.fake.asked - before == 4 * (QUESTIONS + 2 * len(screening.screened))
    assert {work.settings.temperature for work in generate.of("screening")} == {1.0}
    assert len(generate.of("screening")) == 2, "the model is loaded once for all contexts"
    for row in screening.rows[1:]:
        rates = pass_rates(files[row.context])
        gains = [rate - base[place] for rate, place in zip(rates, screening.screened, strict=True)]
        assert row.accuracy.value == pytest.approx(np.mean(rates))
        assert row.difference is not None and row.difference.value == pytest.approx(np.mean(gains))
    asked = pq.read_table(out / "screening" / "1c1w.parquet.parts" / "requests.parquet")["prompt_ids"].to_pylist()
    given = prepared.rows.take(screening.screened).to_pylist()
    assert asked == [teacher_prompt_ids(student, row, "1c1w", SETTINGS) for row in given]
    record = json.loads((out / "screening.json").read_text())
    assert record["excluded"] == screening.excluded
    assert [item["context"] for item in record["rows"]] == ["baseline", "1c", "1c1w"]
    assert (out / "screening.md").read_text().count("\n| ") == 5


def test_the_baseline_may_be_given(student: Model, tmp_path: Path) -> None:
    contexts, out, generate = ContextSettings(["1c"], screen=2), tmp_path / "out", Recorded()
    sampler = Sampler(SETTINGS, workers=1, generate=generate)
    prepared = prepare_contexts(student, questions(), contexts, sampler, out)
    prepared = replace(prepared, usable=[1, 3, 5, 8])
    rates = [0.0, 0.5, 0.5, 0.0, 0.5, 0.25, 0.5, 0.5, 1.0]
    screening = screen_contexts(student, prepared, contexts, sampler, out, rates, 100)
    assert screening.screened == [1, 5, 8] and screening.excluded == [3]
    assert screening.rows[0].accuracy.value == pytest.approx(1.75 / 3) and len(generate.of("screening")) == 1
    never = Recorded()
    nobody = screen_contexts(student, prepared, contexts, replace(sampler, generate=never), out, [0.0] * QUESTIONS, 100)
    assert nobody.excluded == [1, 3, 5, 8] and not never.works and nobody.rows[1].questions == 0
    assert json.loads((out / "screening.json").read_text())["rows"][1]["accuracy"]["value"] is None
