"""The benchmarks of teacher scoring at tiny sizes, their tables, the soak, and the timeline of a run."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib import image
from places import TESTS

from opd_verl import timeline
from opd_verl.timeline import OTHER, WAIT, draw, hidden_share, read_steps, summary, wait_share

FOLDER = TESTS / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The scripts' modules by their names without "teacher_"."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import teacher_inputs  # type: ignore[import-not-found]  # found through the path set above
    import teacher_ours  # type: ignore[import-not-found]
    import teacher_sharing  # type: ignore[import-not-found]
    import teacher_soak  # type: ignore[import-not-found]
    import teacher_table  # type: ignore[import-not-found]
    import teacher_vllm  # type: ignore[import-not-found]

    modules: list[ModuleType] = [teacher_inputs, teacher_ours, teacher_sharing, teacher_soak, teacher_table]
    return SimpleNamespace(**{module.__name__.removeprefix("teacher_"): module for module in [*modules, teacher_vllm]})


def tables(report: str) -> list[dict[str, str]]:
    """All rows of all tables by their column names."""
    collected: list[dict[str, str]] = []
    header: list[str] | None = None
    for line in report.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = cells
        elif set(cells) != {"---"}:
            collected.append(dict(zip(header, cells, strict=True)))
    return collected


def run(script: str, out: Path, *options: str) -> list[dict[str, str]]:
    """A script's tables."""
    command = [sys.executable, str(FOLDER / script), *options, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert out.read_text() in done.stdout
    return tables(out.read_text())


def test_our_side_and_sharing_at_the_quick_size(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    rows = run("teacher_scoring.py", out, "--quick", "--only", "ours", "sharing")
    speeds = {(row["variant"], row["dtype"]): row for row in rows if "variant" in row}
    assert {dtype for _, dtype in speeds} == {"float32", "bfloat16"}
    for dtype in ("float32", "bfloat16"):
        topk, sampled = speeds["ours: top-16 and entropy", dtype], speeds["ours: sampled token and entropy", dtype]
        # 12 tokens a rollout: 4 + 4 + 16 * (3 + 2) of the arrays, 2 bytes of valid, and header and key of 34
        assert float(topk["bytes per response token"]) == pytest.approx(88 + (2 + 28 + len("0_0_0")) / 12, abs=0.06)
        assert float(sampled["bytes per response token"]) == pytest.approx(8 + (2 + 28 + len("0_0_0")) / 12, abs=0.06)
        assert float(topk["response tokens/s"]) > 0 and topk["ours is faster"] == "-"
    assert [row["side"] for row in rows if "side" in row] == ["ours", "ours"]
    text = out.read_text()
    (bf16,) = [line for line in text.splitlines() if line.startswith("bfloat16: largest")]
    assert 0 < float(bf16.split()[-2]) < 0.5 and "OurTeacher against the same weights in float32" in bf16
    budgets = {(row["budget"], row["dtype"]): row for row in rows if "budget" in row}
    assert budgets["bytes per response token, ours: top-16 and entropy", "float32"]["verdict"] == "met"
    shared = {(row["P"], row["R"]): row for row in rows if "P" in row}
    assert len(shared) == 4 and "Responses of 2-8 tokens: break-even" in text
    # two rollouts of 32 + 8 tokens read 78, of which one prompt is saved
    assert shared["32", "8"]["share saved"] == f"{32 / 78:.3f}" and shared["32", "8"]["read as"] == "shared"
    assert shared["2", "8"]["share saved"] == f"{2 / 18:.3f}" and shared["2", "8"]["read as"] == "padded"


def test_our_steps_compute_what_they_are_called(scripts: SimpleNamespace) -> None:
    from opd_verl.teacher.scoring.scorer import Scorer

    size = scripts.inputs.TeacherSize.parse("64,1,50")
    model = scripts.inputs.make_teacher(size, torch.float32, 20)
    requests = scripts.inputs.rollouts(50, [3, 5], [4, 6])
    assert [len(request.prompt_ids) for request in requests] == [3, 5]
    assert [len(request.response_ids) for request in requests] == [4, 6]
    ours = scripts.ours.OurTeacher(Scorer(model, 50), requests, 7)
    for step in ours.steps().values():
        step()
    assert scripts.inputs.response_tokens(requests) == len(ours.log_q()) == 10
    ids = torch.tensor([*requests[1].prompt_ids, *requests[1].response_ids])[None]
    log_probs = model(ids).logits[0].log_softmax(-1)
    expected = torch.stack([log_probs[4 + t, token] for t, token in enumerate(requests[1].response_ids.tolist())])
    torch.testing.assert_close(ours.log_q()[4:], expected.detach(), rtol=1e-4, atol=1e-4)
    assert ours.shipped["ours"] - ours.shipped["ours_sampled"] == 10 * 7 * 5


def test_siblings_share_their_prompt(scripts: SimpleNamespace) -> None:
    a, b, c, _ = scripts.inputs.rollouts(50, [3, 5], [4, 6], siblings=2)
    assert a.prompt_ids.tolist() == b.prompt_ids.tolist() != c.prompt_ids.tolist()
    assert a.key != b.key and (len(a.response_ids), len(b.response_ids)) == (4, 6)


def measured(scripts: SimpleNamespace, **changes: Any) -> Any:
    fields = {
        "size": scripts.inputs.TeacherSize(256, 4, 151936),
        "dtype": "float32",
        "k": 16,
        "tokens": 100,
        "seconds": {
            "ours": [2.0, 1.0, 3.0],
            "ours_encode": [0.1],
            "ours_body": [0.5],
            "ours_gather": [0.2],
            "vllm": [5.8, 6.0, 7.0],
            "vllm_ship": [0.6],
            "vllm_body": [1.2],
        },
        "shipped": {"ours": 9000, "ours_sampled": 1210, "vllm": 29200},
        "differences": {"OurTeacher against VllmTeacher": 2.5e-5},
    }
    return scripts.table.TeacherTiming(**(fields | changes))


def test_the_table_shows_ratios_parts_and_verdicts(scripts: SimpleNamespace) -> None:
    actual = measured(scripts)
    text = "\n".join([*scripts.table.teacher_section("title", [actual]), *scripts.table.budget_section([actual])])
    where = "H = 256, 4 layers, V = 151,936 | float32"
    for line in (
        "| ours: top-16 and entropy | float32 | 2.000 | 100% | 50 | 3.00 x | 90.0 |",
        "| vLLM, prompt_logprobs=16 | float32 | 6.000 | 20% | 17 | - | 292.0 |",
        "| float32 | ours | 2.000 | 0.500 (25%) | 1.400 (70%) | 0.100 (5%) |",
        "| float32 | vllm | 6.000 | 1.200 (20%) | 4.200 (70%) | 0.600 (10%) |",
        f"| speed: ours against vLLM, top-16 | {where} | >= 3.00 x | 3.00 x | met |",
        f"| bytes per response token, ours: top-16 and entropy | {where} | <= 100.0 | 90.0 | met |",
        f"| bytes per response token, ours: sampled token and entropy | {where} | <= 12.0 | 12.1 | missed |",
        f"| log q at 16 ids afterwards / scoring | {where} | <= 0.050 | 0.100 | missed |",
    ):
        assert line in text, line
    assert "OurTeacher against VllmTeacher: 2.5e-05 nats" in text


def test_a_speed_without_a_peer_or_a_target_is_not_judged(scripts: SimpleNamespace) -> None:
    size = scripts.inputs.TeacherSize
    assert scripts.table.target(size(1024, 16, 8192)) == 1.2
    assert scripts.table.target(size(512, 8, 8192)) is None
    alone = measured(scripts, seconds={"ours": [1.0], "ours_gather": [0.01]})
    assert scripts.table.budget_rows(alone)[0][-2:] == ["-", "not measured"]
    slow = measured(scripts, seconds={"ours": [1.0], "vllm": [2.99]})
    assert scripts.table.budget_rows(slow)[0][-2:] == ["2.99 x", "missed"]


def test_break_even_lies_where_the_ratio_falls_below_one(scripts: SimpleNamespace) -> None:
    def points(*pairs: tuple[float, float]) -> list[Any]:
        return [scripts.sharing.SharingPoint(8, 1, "8", saving, [1.0], [ratio]) for saving, ratio in pairs]

    assert scripts.sharing.break_even(points((0.4, 0.8), (0.2, 1.2), (0.1, 1.3))) == "0.300"
    assert scripts.sharing.break_even(points((0.1, 0.9), (0.5, 0.2))) == "below 0.100"
    assert scripts.sharing.break_even(points((0.1, 1.1), (0.5, 1.0))) == "above 0.500"
    early, late = points((0.1, 0.8), (0.3, 1.5))
    assert (early.chosen, late.chosen) == ("padded", "shared")
    assert early.regret == pytest.approx(0.25) and late.regret == pytest.approx(0.5)
    assert points((0.3, 0.9))[0].regret == 0.0


def test_two_ways_that_differ_are_refused(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    body = scripts.inputs.make_teacher(scripts.inputs.TeacherSize(64, 1, 50), torch.float32, 20).get_decoder()
    requests = scripts.inputs.rollouts(50, [3], [4], siblings=2)
    with torch.inference_mode():
        assert set(scripts.sharing.both_ways(body, requests)) == {"read_padded", "read_shared"}
        wrong = scripts.sharing.read_padded
        monkeypatch.setattr(scripts.sharing, "read_shared", lambda *arguments: 1.5 * wrong(*arguments))
        with pytest.raises(ValueError, match=r"differs from read_padded by 50\.0%"):
            scripts.sharing.both_ways(body, requests)


def test_vllm_gets_cores_that_this_process_may_use(scripts: SimpleNamespace) -> None:
    actual = scripts.vllm.environment(1)
    assert actual["VLLM_CPU_OMP_THREADS_BIND"].isdigit() and actual["VLLM_PLUGINS"] == ""
    assert "vllm" not in vars(scripts.vllm), "imported within functions only"


def test_a_short_soak(tmp_path: Path) -> None:
    out = tmp_path / "soak.md"
    rows = run("teacher_soak.py", out, "--sequences", "60", "--per-step", "8", "--threads", "1")
    assert rows[-1]["sequences"] == "60" and rows[-1]["steps"] == "8" and len(rows) == 8
    kept = [float(row["states MiB"]) for row in rows]
    # 8 rollouts of at most 128 tokens: float32 hidden states of 128 numbers, three numbers and top-16 for each
    assert 0 < max(kept) <= 8 * 128 * (4 * 128 + 12 + 8 * 16) / 2**20, "the steps before are closed"
    assert all(float(row["RSS MiB"]) > 100 for row in rows)
    assert "Median RSS from 80% to 100% over that from 20% to 40%: " in out.read_text()


def test_the_soaks_verdict(scripts: SimpleNamespace) -> None:
    sizes = {5: 50, 20: 90, 30: 100, 40: 130, 60: 110, 85: 106, 90: 300, 100: 104}
    samples = [scripts.soak.MemorySample(n, n, rss * 2**20, 0, 0, n, 2.0) for n, rss in sizes.items()]
    text = scripts.soak.markdown(samples, 100, "# title")
    assert "| 5 | 5 | 50.0 | -52.4% | 0.00 | 0 | 2 |" in text and "| 100 | 100 | 104.0 | -1.0% |" in text
    assert "Median RSS from 80% to 100% over that from 20% to 40%: 1.060, target <= 1.050: missed." in text
    with pytest.raises(ValueError, match="too few"):
        scripts.soak.growth(samples[:4], 100)


def logged(path: Path, *steps: dict[str, float]) -> Path:
    """A file as verl's file logger writes it; a validation before training comes first."""
    lines = [{"step": 0, "data": {"val-core/acc": 0.5}}]
    lines += [{"step": place, "data": {"actor/loss": 1.0} | data} for place, data in enumerate(steps, 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def step(whole: float, wait: float, busy: float, **parts: float) -> dict[str, float]:
    seconds = {"step": whole, "teacher": wait, "teacher_busy": busy} | parts
    return {f"timing_s/{name}": value for name, value in seconds.items()}


def test_the_wait_is_taken_out_of_the_log_prob_pass(tmp_path: Path) -> None:
    path = logged(
        tmp_path / "run.jsonl",
        step(10.0, 1.0, 4.0, gen=5.0, old_log_prob=2.5, update_actor=1.5, testing=3.0),
        step(30.0, 5.0, 2.0, gen=20.0, old_log_prob=5.5, update_actor=4.5),
    )
    first, second = steps = read_steps(path)
    assert [item.number for item in steps] == [1, 2] and "testing" not in first.parts
    assert first.parts[WAIT] == 1.0 and first.parts["old_log_prob"] == 1.5 and first.parts["gen"] == 5.0
    assert first.parts[OTHER] == pytest.approx(1.0) and second.parts[OTHER] == 0.0
    assert (first.hidden, second.hidden) == (3.0, 0.0)
    assert wait_share(steps) == pytest.approx(6 / 40) and hidden_share(steps) == pytest.approx(0.5)
    assert "Steps 2 to 2, 30.0 s. Waiting for the teacher: 16.7% of that" in summary(steps), "the first one starts up"
    later = "Waiting for the teacher: 15.0% of that (median step 13.3%, worst 16.7% in step 2); target <= 10%: missed"
    assert later in summary([second, *steps]) and "<= 10%: met" in summary(steps[:1])


def test_the_timeline_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run_file = logged(tmp_path / "run.jsonl", step(10.0, 1.0, 4.0, gen=5.0, old_log_prob=2.5))
    out = tmp_path / "timeline.png"
    monkeypatch.setattr(sys, "argv", ["timeline", str(run_file), "--out", str(out)])
    timeline.main()
    assert "Steps 1 to 1, 10.0 s. Waiting for the teacher: 10.0%" in capsys.readouterr().out
    height, width = image.imread(out).shape[:2]
    assert height > 300 and width > 600
    draw(read_steps(run_file), out, "another title")


def test_a_run_without_a_teacher_is_refused(tmp_path: Path) -> None:
    without = {"timing_s/step": 3.0, "timing_s/gen": 1.0}
    with pytest.raises(ValueError, match=r"step 1 has no timing_s/teacher: not a run of recipe=opd"):
        read_steps(logged(tmp_path / "grpo.jsonl", without))
    with pytest.raises(ValueError, match="holds no training step"):
        read_steps(logged(tmp_path / "empty.jsonl"))
