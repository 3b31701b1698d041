"""Folders that look like those of real runs: two trainings, a probe with before and after, an evaluation, rollouts.

python tests/harness/report_harness.py FOLDER    # writes them, to look at a report
"""

import json
import math
import sys
from pathlib import Path
from random import Random
from typing import Any

from opd_verl.tracking.metrics_file import write_steps

BUCKETS = ("0-511", "512-1023", "1024-2047", "2048-4095")
TEXT = (
    "We need to find the number of integers such that the sum of the digits is divisible by 7 . \n Let n = 10 a + b , "
    "so a + b must be 7 or 14 . \n Hmm , wait : for a + b = 14 the pairs are ( 5 , 9 ) , ( 6 , 8 ) , ( 7 , 7 ) . "
    "Therefore the answer is \\boxed{ 12 } ."
)
WORDS = TEXT.split(" ")
EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(2)>&'


def metrics(step: int, steps: int, quality: float, seed: int) -> dict[str, float]:
    """One training step; `quality` in 0..1 is how well it goes."""
    rng, done = Random(f"{seed}/{step}"), step / steps
    noise = [rng.gauss(0, 1) for _ in range(16)]
    gap = (1 - quality * (1 - math.exp(-3 * done))) * (1 + 0.05 * noise[0])
    student = 0.28 + 0.25 * quality * done + 0.01 * noise[1]
    masses = {1: 0.58 + 0.05 * done, 2: 0.11 + 0.03 * quality * done, 3: 0.16 - 0.06 * quality * done}
    masses[4] = 1 - sum(masses.values())
    forces = {
        number: mass * scale * gap for (number, mass), scale in zip(masses.items(), (0.03, 0.4, 0.5, 0.9), strict=True)
    }
    destructive = masses[3] * (0.35 + 0.35 * (1 - quality) * done)
    actual = {
        "opd/reward_mean": -0.11 * gap,
        "opd/reverse_kl": 0.11 * gap,
        "opd/student_entropy": student,
        "opd/teacher_entropy": 0.55 + 0.01 * noise[2],
        "opd/rho": 0.55 + 0.3 * quality * done + 0.01 * noise[3],
        "opd/fork_overlap": 0.5 + 0.25 * quality * done + 0.01 * noise[4],
        "opd/entropy_gap": 0.3 * gap,
        "opd/truncated_share": max(0.2 - 0.15 * done + 0.02 * noise[5], 0.0),
        "opd/gated_share": 0.18 + 0.01 * noise[6],
        "response_length/mean": 900 + 400 * done + 30 * noise[7],
        "critic/score/mean": 0.35 + 0.3 * quality * done + 0.02 * noise[8],
        "timing_s/step": 61 + 2 * noise[9] + (30 if step == 1 else 0),
        "opd/destructive_mass": destructive,
        "opd/destructive_reward": 0.2 * gap,
        "opd/corrective_mass": masses[3] - destructive,
        "opd/corrective_reward": 0.19 * gap,
        "opd/dest_corr": destructive * 0.2 / ((masses[3] - destructive) * 0.19),
    }
    actual |= {f"opd/q{number}_mass": mass for number, mass in masses.items()}
    actual |= {f"opd/q{number}_force": force for number, force in forces.items()}
    for depth, bucket in enumerate(BUCKETS):
        actual[f"opd/depth/{bucket}/reward"] = (-0.05 - 0.06 * depth) * gap + 0.03 * done + 0.004 * noise[10 + depth]
    if step % 5 == 0:
        actual |= {"opd/overlap_ratio": 0.62 + 0.25 * quality * done, "opd/overlap_advantage": -0.09 * gap}
        actual |= {f"val-core/{name}/acc/mean@8": 0.2 + 0.2 * quality * done for name in ("math-500", "aime24")}
    return actual


def write_training(folder: Path, quality: float, seed: int, steps: int = 40) -> Path:
    """metrics.jsonl with missing values, samples of every tenth step, and Hydra's overrides."""
    logged: list[dict[str, Any]] = [
        {"step": step, **metrics(step, steps, quality, seed)} for step in range(1, steps + 1)
    ]
    if steps > 20:
        for step in range(17, 20):
            logged[step].pop("opd/rho")
            logged[step]["opd/reverse_kl"] = math.nan
    if quality < 0.5:
        for entry in logged:
            entry["opd/alert/dest_corr"] = float(entry["opd/dest_corr"] > 1)
            entry["opd/alerts"] = entry["opd/alert/dest_corr"]
    write_steps(folder / "metrics.jsonl", logged)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(
        f"- recipe={'eopd' if quality > 0.5 else 'opd'}\n- trainer.seed=1\n"
    )
    for step in range(10, steps + 1, 10):
        rollouts = [rollout(f"{step}_{at}_0", why, step + at + seed, top=False) for at, why in enumerate(WHYS)]
        write(folder / "samples" / f"step_{step:06d}.json", {"step": step, "rollouts": rollouts})
    return folder


WHYS = ("lowest mean r_t", "highest mean r_t", "by lot", "by lot")


def rollout(name: str, why: str, seed: int, top: bool, length: int = 220, prompt: str = "How many?") -> dict[str, Any]:
    """ROLLOUT of the contract."""
    rng = Random(seed)
    tokens = [token(rng, WORDS[at % len(WORDS)], at, length, top) for at in range(length)]
    mean = sum(item["reward"] for item in tokens) / length
    correct = rng.random() < 0.5
    known = {"score": float(correct), "correct": correct, "mean_reward": mean, "tokens": tokens}
    return {"name": name, "why": why, "teacher": "Qwen3-8B" if top else None, "prompt": prompt, **known}


def token(rng: Random, word: str, at: int, length: int, top: bool) -> dict[str, Any]:
    """TOKEN of the contract."""
    entropy = rng.expovariate(4) if rng.random() < 0.7 else rng.uniform(0.3, 2)
    log_p = -entropy * rng.random()
    reward = 0.0 if rng.random() < 0.1 else rng.gauss(-0.02, 0.05 + 0.8 * entropy)
    reward = min(reward, -log_p)
    quadrant = 0 if not reward else (1 if reward > 0 else 3) + (entropy >= 0.3)
    best = [[" " + rng.choice(WORDS), math.log(share)] for share in (0.6, 0.2, 0.1, 0.05, 0.02)] if top else None
    return {
        "id": rng.randrange(150000),
        "text": word if word in ("\n", ".", ",") else " " + word,
        "log_p": log_p,
        "log_q": log_p + reward,
        "reward": reward,
        "trained": at < length - 8,
        "student_entropy": entropy,
        "teacher_entropy": entropy * rng.uniform(0.6, 1.8) if top else None,
        "quadrant": quadrant,
        "top": best,
    }


def estimate(value: float | None, width: float = 0.02) -> dict[str, Any]:
    """A measurement with its interval; null where it is unknown."""
    known = value is not None
    return {
        "value": value,
        "low": value - width if known else None,
        "high": value + width if known else None,
        "rollouts": 256,
    }


def pair(student: str, teacher: str, shift: float, verdict: dict[str, Any]) -> dict[str, Any]:
    """PAIR of the contract; shift 0 before and 1 after distillation."""
    step = metrics(int(1 + 39 * shift), 40, 0.9, 5)
    measured = {name.removeprefix("opd/"): estimate(value) for name, value in step.items() if name.startswith("opd/")}
    measured = {name: item for name, item in measured.items() if "depth" not in name}
    measured |= {
        "accuracy": estimate(0.41 + 0.2 * shift),
        "teacher_accuracy": estimate(0.68),
        "headroom": estimate(0.27),
    }
    measured |= {
        "reward_auroc": estimate(0.71),
        "gated_share_0.8": estimate(None),
        "overlap_ratio": estimate(0.7 + 0.2 * shift),
    }
    depth = [
        {
            "first": 512 * at,
            "last": 512 * at + 511,
            "reward": estimate((-0.03 - 0.025 * at) * (1.4 - shift)),
            "tokens": 9000,
        }
        for at in range(7)
    ]
    return {
        "student": student,
        "teacher": teacher,
        "measurements": measured,
        "depth": depth,
        "mass": [{"k": 4**power, "mass": 1 - 0.1 / 6**power, "bytes": 8 + 5 * 4**power} for power in range(5)],
        "continuation": [
            {"share": share, "teacher": estimate(0.66 - 0.3 * share), "advantage": estimate(0.2), "below": 0.0}
            for share in (0.25, 0.5, 0.75)
        ],
        "histograms": {"bin_width": 0.1, "student": counts(3.2 - 1.1 * shift), "teacher": counts(2.0)},
        "verdict": verdict,
        "compatibility": [
            {"what": "vocabulary", "ok": True, "detail": "the same 151,936 ids"},
            {"what": "chat template", "ok": shift > 0, "detail": "the teacher's adds a think block"},
        ],
    }


def counts(rate: float) -> list[int]:
    """51 bins of an exponential distribution of entropies."""
    return [int(60000 * math.exp(-rate * at / 10) * (3 if at == 0 else 1)) for at in range(51)]


GAIN = {
    "verdict": "gain expected",
    "rule": "The teacher is better by more than the interval, and Dest:Corr is below 1.",
    "number": "headroom 0.27 [0.25, 0.29], Dest:Corr 0.54",
    "row": "Capacity table 4, Qwen2.5-0.5B-It and 14B-It: 0.36, MATH-500 +3.8",
    "sure": 0.86,
    "remedies": [],
}
RISK = {
    "verdict": "regression risk",
    "rule": "Dest:Corr is above 1: the teacher pushes hardest against confident tokens of correct rollouts.",
    "number": "Dest:Corr 1.42 [1.20, 1.71]",
    "row": "Capacity table 4, Qwen2.5-3B-It and 7B-GRPO: 1.52, MATH-500 -2.6",
    "sure": 0.7,
    "remedies": ["tokens.masks=[drop_destructive_q3]", "tokens.masks=[top_share] with share 0.2"],
}


def write_probe(folder: Path) -> Path:
    """probe.json with before and after, and tokens.json."""
    pairs = [pair("before", "Qwen3-8B", 0.0, GAIN), pair("after", "Qwen3-8B", 1.0, RISK)]
    write(folder / "probe.json", {"version": 1, "settings": {"rollouts": 256}, "pairs": pairs})
    rollouts = [rollout(f"p{at}", why, at, top=True, length=420) for at, why in enumerate(WHYS)]
    write(folder / "tokens.json", {"rollouts": rollouts})
    return folder


def write_evaluation(folder: Path) -> Path:
    """table.json of three models on two benchmarks."""
    rows = [row(model, name, skill) for name in ("math-500", "aime24") for model, skill in MODELS.items()]
    settings = {"n": 16, "ks": [1, 2, 4, 8, 16]}
    write(folder / "table.json", {"settings": settings, "teacher": "teacher", "before": "base", "rows": rows})
    return folder


MODELS = {"base": 0.31, "opd": 0.52, "teacher": 0.66}


def row(model: str, benchmark: str, skill: float) -> dict[str, Any]:
    """A row of the evaluation's table."""
    skill = skill if benchmark == "math-500" else skill / 3

    def interval(value: float) -> dict[str, float]:
        return {"value": value, "low": max(value - 0.04, 0.0), "high": min(value + 0.04, 1.0)}

    ks, tokens = (1, 2, 4, 8, 16), counts(3.0 - skill)
    power = 0.5 if model == "opd" else 0.7
    entropy = {"responses": 64, "tokens": sum(tokens), "mean": 0.4, "high_share": sum(tokens[10:]) / sum(tokens)}
    known = {"problems": 500, "n": 16, "accuracy": interval(skill), "majority": interval(skill + 0.05)}
    known |= {"pass_at": {str(k): interval(1 - (1 - skill) ** (k**power)) for k in ks}}
    known |= {"length": 812.5, "truncated": 0.03, "unanswered": 0.01, "distinct": 0.4, "answer_entropy": 0.8}
    known |= {"entropy": entropy | {"counts": tokens}, "gap_recovery": 0.6 if model == "opd" else None}
    return {"model": model, "benchmark": benchmark, **known}


def write(path: Path, content: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_all(root: Path) -> list[Path]:
    """Every kind of run."""
    return [
        write_training(root / "eopd-1.7b", 0.9, 1),
        write_training(root / "opd-1.7b-no-mask", 0.3, 2),
        write_probe(root / "probe"),
        write_evaluation(root / "eval"),
    ]


if __name__ == "__main__":
    print(*write_all(Path(sys.argv[1])))
