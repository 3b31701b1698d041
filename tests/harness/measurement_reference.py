"""The measurements of metrics/README.md 1 as loops over Python floats, one rollout at a time."""

import math
from dataclasses import dataclass

NAN = float("nan")


@dataclass(frozen=True)
class Rollout:
    """Plain lists over its T response tokens; whole distributions [T][V]."""

    tokens: list[int]
    p: list[list[float]]
    q: list[list[float]]
    correct: bool

    def reward(self) -> list[float]:
        return [math.log(q[y]) - math.log(p[y]) for y, p, q in zip(self.tokens, self.p, self.q, strict=True)]

    def entropies(self, side: str) -> list[float]:
        return [-sum(x * math.log(x) for x in row) for row in getattr(self, side)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else NAN


def defined_mean(values: list[float]) -> float:
    return mean([value for value in values if not math.isnan(value)])


def pearson(x: list[float], y: list[float]) -> float:
    mx, my = mean(x), mean(y)
    vx, vy = sum((a - mx) ** 2 for a in x), sum((b - my) ** 2 for b in y)
    if len(x) < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return NAN
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / math.sqrt(vx * vy)


def forks(entropies: list[float]) -> set[int]:
    count = len(entropies) // 5
    return set(sorted(range(len(entropies)), key=lambda t: (-entropies[t], t))[:count])


def fork_overlap(x: list[float], y: list[float]) -> float:
    return len(forks(x) & forks(y)) / (len(x) // 5) if len(x) >= 5 else NAN


def top(row: list[float], k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda v: (-row[v], v))[:k]


def overlap_of(p: list[float], q: list[float], k: int) -> dict[str, float]:
    """Overlap ratio, masses and advantage of one position."""
    own, teachers = top(p, k), top(q, k)
    shared = [v for v in own if v in teachers]
    mass_p, mass_q = sum(p[v] for v in own), sum(q[v] for v in own)
    gains = [p[v] / mass_p * math.log(q[v] / mass_q / (p[v] / mass_p)) for v in shared]
    total = sum(q[v] for v in teachers)
    return {
        "overlap_ratio": len(shared) / k,
        "overlap_student_mass": sum(p[v] for v in shared),
        "overlap_teacher_mass": sum(q[v] for v in shared),
        "overlap_advantage": mean(gains),
        "forward_kl": sum(q[v] / total * (math.log(q[v] / total) - math.log(p[v])) for v in teachers),
    }


def reference(rollouts: list[Rollout], k: int) -> dict[str, float]:
    """Every measurement by name."""
    collected: dict[str, float] = {}
    tokens = [
        (rollout, r, hp, hq, overlap_of(p, q, k))
        for rollout in rollouts
        for r, hp, hq, p, q in zip(
            rollout.reward(), rollout.entropies("p"), rollout.entropies("q"), rollout.p, rollout.q, strict=True
        )
    ]
    total = len(tokens)
    collected["response_length"] = mean([float(len(item.tokens)) for item in rollouts])
    collected["accuracy"] = mean([float(item.correct) for item in rollouts])
    collected["reverse_kl"] = -mean([r for _, r, *_ in tokens])
    collected["student_entropy"] = mean([hp for _, _, hp, *_ in tokens])
    collected["teacher_entropy"] = mean([hq for _, _, _, hq, _ in tokens])
    collected["student_high_entropy_share"] = mean([float(hp >= 1.0) for _, _, hp, *_ in tokens])
    collected["teacher_high_entropy_share"] = mean([float(hq >= 1.0) for _, _, _, hq, _ in tokens])
    for tau in (0.4, 0.6, 0.8, 1.0, 1.2):
        collected[f"gated_share_{tau:g}"] = mean([float(hq > tau) for _, _, _, hq, _ in tokens])
    collected["forward_kl_at_forks"] = mean([at["forward_kl"] for _, _, _, hq, at in tokens if hq >= 0.8])
    pairs = [(item.entropies("p"), item.entropies("q")) for item in rollouts]
    collected["rho"] = defined_mean([pearson(*pair) for pair in pairs])
    collected["fork_overlap"] = defined_mean([fork_overlap(*pair) for pair in pairs])
    collected["entropy_gap"] = defined_mean([mean([abs(b - a) for a, b in zip(x, y, strict=True)]) for x, y in pairs])
    collected["mean_entropy_gap"] = defined_mean([abs(mean(x) - mean(y)) for x, y in pairs])
    for name in ("overlap_ratio", "overlap_student_mass", "overlap_teacher_mass", "overlap_advantage"):
        per_rollout = [
            defined_mean([overlap_of(p, q, k)[name] for p, q in zip(item.p, item.q, strict=True)]) for item in rollouts
        ]
        collected[name] = defined_mean(per_rollout)
    signs = {1: (1, False), 2: (1, True), 3: (-1, False), 4: (-1, True)}
    for number, (sign, forking) in signs.items():
        inside = [abs(r) for _, r, hp, *_ in tokens if r * sign > 0 and (hp >= 0.3) == forking]
        collected[f"q{number}_mass"], collected[f"q{number}_force"] = len(inside) / total, sum(inside) / total
    for name, right in (("destructive", True), ("corrective", False)):
        inside = [abs(r) for item, r, hp, *_ in tokens if r < 0 and hp < 0.3 and item.correct == right]
        collected[f"{name}_mass"], collected[f"{name}_reward"] = len(inside) / total, mean(inside)
    force = [collected[f"{name}_mass"] * collected[f"{name}_reward"] for name in ("destructive", "corrective")]
    kinds = {item.correct for item in rollouts}
    collected["dest_corr"] = NAN
    if len(kinds) == 2 and collected["corrective_mass"]:
        collected["dest_corr"] = (0.0 if not collected["destructive_mass"] else force[0]) / force[1]
    return collected
