"""The report's page: parsed as a browser would, compared with the folders it was made from."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image
from report_harness import (
    BUCKETS,
    EVIL,
    GAIN,
    MODELS,
    WHYS,
    pair,
    rollout,
    write,
    write_all,
    write_evaluation,
    write_probe,
    write_training,
)

from opd_verl.config.errors import ConfigError
from opd_verl.report import page as page_module
from opd_verl.report.page import PAGE, write_report
from opd_verl.report.read import read_runs
from opd_verl.utils.files import write_text

VOID = {"meta", "img", "br", "link", "input", "hr"}
REFERENCES = ("src", "href", "action", "data", "srcset", "poster")


class Page(HTMLParser):
    """Every element with its attributes and the text directly in it; every start tag must have its end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self.open: list[dict[str, Any]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {[element['tag'] for element in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = {"tag": tag, "attributes": dict(attrs), "text": "", "above": [element["tag"] for element in self.open]}
        self.elements.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, tag: str, name: str | None = None) -> list[dict[str, Any]]:
        """Elements of a tag, and of a class where one is named."""
        actual = [element for element in self.elements if element["tag"] == tag]
        return [item for item in actual if name is None or name in (item["attributes"].get("class") or "").split()]

    def ids(self, tag: str) -> list[str]:
        """Ids of a tag's elements."""
        return [element["attributes"]["id"] for element in self.all(tag) if "id" in element["attributes"]]


def report(folders: Sequence[Path], out: Path, samples: int = 6) -> Page:
    """Made and parsed."""
    write_report(read_runs(folders, samples), out)
    return Page((out / PAGE).read_text())


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path, list[Path]]:
    """A report about every kind of run, where it is, and the runs' folders."""
    root = tmp_path_factory.mktemp("runs")
    folders = write_all(root)
    return report(folders, root / "report"), root / "report", folders


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures, where a test looks at something else."""
    monkeypatch.setattr(page_module, "png", lambda chart, path: None)
    monkeypatch.setattr(page_module, "svg", lambda chart: "<svg></svg>")


def test_the_page_needs_nothing_else(everything: tuple[Page, Path, list[Path]]) -> None:
    page, out, _ = everything
    named = [element["attributes"].get(name) for element in page.elements for name in REFERENCES]
    for reference in filter(None, named):
        inside = reference.startswith(("#", "data:image/png;base64,"))
        assert inside or (out / reference).is_file(), reference
    assert not page.all("link") and not page.all("iframe")
    styles = "".join(element["text"] for element in page.all("style"))
    assert "url(" not in styles and "@import" not in styles and "prefers-color-scheme: dark" in styles


def test_every_section_and_every_kind_of_chart_is_there(everything: tuple[Page, Path, list[Path]]) -> None:
    page, out, _ = everything
    assert page.ids("section") == [
        *("overview", "curves", "quadrants", "depth", "teacher", "entropy", "evaluation", "tokens")
    ]
    charts = page.ids("figure")
    expected = {"reward_mean", "reverse_kl", "overlap_ratio", "overlap_advantage", "student_entropy", "rho"}
    expected |= {"fork_overlap", "entropy_gap", "dest_corr", "truncated_share", "response_length_mean"}
    expected |= {"critic_score_mean", "gated_share", "timing_s_step", "val_core_math_500_acc_mean_8"}
    expected |= {"quadrants_a_step_1", "quadrants_b_step_40", "quadrants_c_probe_2", "depth_a", "depth_b"}
    expected |= {"depth_probe", "entropies_c_probe_1", "entropies_d_aime24", "pass_at_k_d_math_500"}
    expected |= {"continuation", "masses"}
    assert expected <= set(charts) and len(charts) == len(set(charts)) == len(list(out.glob("*.png")))
    for name in charts:
        picture = image.imread(out / f"{name}.png")
        assert picture.std() > 0.02 and picture[0, 0, :3].min() == 1.0, f"{name}: drawn, on white"


def test_charts_have_names_and_do_not_share_ids(everything: tuple[Page, Path, list[Path]]) -> None:
    page, _, _ = everything
    pictures = [element for element in page.all("svg") if element["attributes"].get("role") == "img"]
    assert len(pictures) == len(page.all("figure"))
    assert all(picture["attributes"]["aria-label"] for picture in pictures) and len(page.all("title")) == 1 + len(
        pictures
    )
    ids = [element["attributes"]["id"] for element in page.elements if "id" in element["attributes"]]
    assert len(ids) == len(set(ids))
    styles = [element["attributes"].get("style") or "" for element in page.elements if "svg" in element["above"]]
    referred = {part.split(")")[0] for style in styles for part in style.split("url(#")[1:]}
    assert referred <= set(ids)
    assert any("var(--ink)" in style for style in styles) and not any("#0a0b0c" in style for style in styles)


def test_the_table_has_the_last_values(everything: tuple[Page, Path, list[Path]]) -> None:
    page, _, folders = everything
    text = next(element for element in page.all("section") if element["attributes"]["id"] == "overview")["text"]
    for folder in folders[:2]:
        final = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["data"]
        for name in ("opd/reward_mean", "opd/dest_corr", "critic/score/mean", "val-core/aime24/acc/mean@8"):
            assert f"{final[name]:.4g}" in text, name
        assert folder.name in text
    assert "eopd" in text and "1 to 40" in text and "dest_corr: 18 steps" in text


def test_the_probe_is_told_with_sign_and_word(everything: tuple[Page, Path, list[Path]]) -> None:
    page, _, _ = everything
    good, warn = page.all("article", "good"), page.all("article", "warn")
    assert len(good) == len(warn) == 1
    assert all(part in good[0]["text"] for part in ("✓ gain expected", "86% sure", GAIN["row"], "1 of 2 checks failed"))
    assert "! regression risk" in warn[0]["text"] and "drop_destructive_q3" in warn[0]["text"]
    (row,) = [element for element in page.all("tr") if element["text"].startswith("accuracy")]
    assert row["text"] == "accuracy0.41 [0.39, 0.43]0.61 [0.59, 0.63]"
    (unknown,) = [element for element in page.all("tr") if element["text"].startswith("gated_share_0.8")]
    assert unknown["text"] == "gated_share_0.8--"


def test_the_evaluation_is_there_by_value(everything: tuple[Page, Path, list[Path]]) -> None:
    page, _, folders = everything
    table = json.loads((folders[3] / "table.json").read_text())
    text = next(element for element in page.all("section") if element["attributes"]["id"] == "evaluation")["text"]
    for row in table["rows"]:
        assert f"{100 * row['pass_at']['16']['value']:.1f} [" in text
    assert all(model in text for model in MODELS)


def test_charts_say_their_values(everything: tuple[Page, Path, list[Path]]) -> None:
    page, _, folders = everything
    labels = " | ".join(element["attributes"].get("aria-label") or "" for element in page.all("svg"))
    final = json.loads((folders[1] / "metrics.jsonl").read_text().splitlines()[-1])["data"]
    assert f"B {folders[1].name}: {final['opd/reverse_kl']:.4g} nats at step 40" in labels
    assert f"Q3 {final['opd/q3_mass']:.1%} of tokens, {final['opd/q3_force']:.3g} nats" in labels
    assert f"{final[f'opd/depth/{BUCKETS[-1]}/reward']:.3f} at tokens 2048 to 4095" in labels


def test_rollouts_are_shown_with_the_numbers_of_their_tokens(everything: tuple[Page, Path, list[Path]]) -> None:
    page, _, folders = everything
    assert len(page.all("article", "rollout")) == 6 + 6 + len(WHYS)
    contents = [json.loads(element["text"]) for element in page.all("script") if element["attributes"].get("type")]
    given = json.loads((folders[2] / "tokens.json").read_text())["rollouts"][0]
    actual, token = contents[12], given["tokens"][5]
    assert len(actual["tokens"]) == len(given["tokens"])
    numbers = [token[name] for name in ("log_p", "log_q", "reward")]
    assert actual["tokens"][5][1:4] == pytest.approx(numbers, abs=1e-4)
    assert [token["id"], token["quadrant"]] == [actual["tokens"][5][0], actual["tokens"][5][7]]
    places, logs = actual["tokens"][5][8][::2], actual["tokens"][5][8][1::2]
    assert [actual["texts"][place] for place in places] == [text for text, _ in token["top"]]
    assert logs == pytest.approx([log_q for _, log_q in token["top"]], abs=1e-4)
    masked = [element for element in page.all("span", "masked") if "article" in element["above"]]
    assert len(masked) == 8 * 16


def sections_of(folder: Path, out: Path) -> list[str]:
    return report([folder], out).ids("section")


@pytest.mark.usefixtures("undrawn")
def test_a_section_is_there_only_where_its_data_is(tmp_path: Path) -> None:
    assert sections_of(write_evaluation(tmp_path / "e"), tmp_path) == ["overview", "entropy", "evaluation"]
    of_probe = ["overview", "quadrants", "depth", "teacher", "entropy", "tokens"]
    assert sections_of(write_probe(tmp_path / "p"), tmp_path) == of_probe
    assert sections_of(write_training(tmp_path / "t", 0.9, 1, steps=9), tmp_path) == [
        "overview",
        "curves",
        "quadrants",
        "depth",
    ]
    write_text(tmp_path / "bare" / "metrics.jsonl", '{"step": 1, "data": {"opd/rho": 0.5, "other/metric": 1}}\n')
    page = report([tmp_path / "bare"], tmp_path)
    assert page.ids("section") == ["overview", "curves"] and page.ids("figure") == ["rho"]
    assert "regression risk" not in page.elements[0]["text"]


def test_values_that_are_missing_everywhere_make_no_chart_and_no_error(tmp_path: Path) -> None:
    lines = [
        {"step": step, "data": {"opd/rho": math.nan, "opd/reverse_kl": None if step < 3 else 0.5}} for step in (1, 2, 3)
    ]
    lines[0]["data"] |= {"opd/depth/0-9/reward": math.nan, "opd/q1_mass": 0.5, "opd/alert/x": 0.0}
    write_text(tmp_path / "run" / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    page = report([tmp_path / "run"], tmp_path / "out")
    assert page.ids("figure") == ["reverse_kl"]
    text = page.elements[0]["text"]
    assert "0.5 nats at step 3" in page.all("svg")[-1]["attributes"]["aria-label"] and "Alerts" not in text


def test_what_models_and_users_write_is_only_text(tmp_path: Path) -> None:
    item = rollout(EVIL, EVIL, 1, top=True, length=20, prompt=EVIL)
    item["tokens"][0]["text"] = item["tokens"][0]["top"][0][0] = item["teacher"] = EVIL
    write(tmp_path / "run" / "tokens.json", {"rollouts": [item]})
    told = {name: [EVIL] if name == "remedies" else EVIL for name in GAIN} | {"sure": None}
    bad = pair(EVIL, EVIL, 0.0, told)
    bad["compatibility"] = [{"what": EVIL, "ok": False, "detail": EVIL}]
    bad["measurements"][EVIL] = bad["measurements"]["accuracy"]
    write(tmp_path / "run" / "probe.json", {"version": 1, "settings": {}, "pairs": [bad]})
    table = write_evaluation(tmp_path / "run") / "table.json"
    content = json.loads(table.read_text())
    content["rows"] = [row | {"model": EVIL, "benchmark": EVIL} for row in content["rows"][:1]]
    write(table, content)
    write_text(tmp_path / "run" / "metrics.jsonl", json.dumps({"step": 1, "data": {f"opd/alert/{EVIL}": 1}}) + "\n")
    page = report([tmp_path / "run"], tmp_path / "out")
    assert [element["attributes"].get("type") for element in page.all("script")] == ["application/json", None]
    assert not page.all("img") and "onerror=alert(2)" in page.elements[0]["text"]
    texts = json.loads(page.all("script")[0]["text"])["texts"]
    assert texts[0] == EVIL


@pytest.mark.usefixtures("undrawn")
def test_a_teacher_that_cannot_score_has_a_verdict_and_nothing_else(tmp_path: Path) -> None:
    cannot = GAIN | {"verdict": "cannot distil", "sure": None}
    item = {"student": "s", "teacher": "t", "verdict": cannot, "compatibility": []}
    write(tmp_path / "run" / "probe.json", {"version": 1, "pairs": [item]})
    page = report([tmp_path / "run"], tmp_path)
    assert page.ids("section") == ["overview"] and "✗ cannot distil" in page.all("article", "bad")[0]["text"]
    assert "sure" not in page.all("article", "bad")[0]["text"]


@pytest.mark.usefixtures("undrawn")
def test_a_long_rollout_stays_small(tmp_path: Path) -> None:
    long = rollout("long", "by lot", 1, top=True, length=4096)
    for token in long["tokens"]:
        token["top"] = [[f" word{(token['id'] + at) % 5000}", -0.123456789 * (at + 1)] for at in range(16)]
    write(tmp_path / "run" / "tokens.json", {"rollouts": [long] * 9})
    page = report([tmp_path / "run"], tmp_path / "out", samples=2)
    assert len(page.all("article", "rollout")) == 2
    assert (tmp_path / "out" / PAGE).stat().st_size < 2 * 4096 * 400


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("notes.txt", "nothing to show", "holds nothing to show"),
        ("probe.json", '{"version": 2, "pairs": []}', "version 2"),
        ("probe.json", '{"version": 1}', "KeyError: 'pairs'"),
        ("tokens.json", "{", "JSONDecodeError"),
        ("table.json", '{"rows": [{"model": "m"}]}', "KeyError"),
    ],
)
def test_a_folder_that_cannot_be_shown_is_refused(name: str, content: str, problem: str, tmp_path: Path) -> None:
    write_text(tmp_path / "run" / name, content)
    with pytest.raises(ConfigError, match=problem):
        read_runs([tmp_path / "run"], 6)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "run")
    for folders, samples, key in (
        ([tmp_path / "none"], 6, "run"),
        ([folder], -1, "samples"),
        ([folder] * 2, 6, "runs"),
    ):
        with pytest.raises(ConfigError) as error:
            read_runs(folders, samples)
        assert error.value.key == key


def test_the_command_writes_the_page_or_says_what_is_wrong(tmp_path: Path) -> None:
    write_text(tmp_path / "run" / "metrics.jsonl", '{"step": 1, "data": {"opd/rho": 0.5}}\n')
    command = [sys.executable, "-m", "opd_verl.report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"{tmp_path / 'out' / PAGE}, with 1 charts" in done.stdout, done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [PAGE, "rho.png"]
    command[3] = str(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Remedy" in done.stderr and "Traceback" not in done.stderr
