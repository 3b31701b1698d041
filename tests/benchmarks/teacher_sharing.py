"""Compares two ways to read several rollouts of a prompt: each with its own copy of the prompt, or the prompt once."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from step_measure import interleaved, spread
from step_ours import Step
from step_table import row
from teacher_inputs import TeacherSize, make_teacher, rollouts
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import SHARING_PAYS, shared_saving
from opd_verl.teacher.scoring.body import read_padded, read_shared

COLUMNS = ("n", "P", "R", "share saved", "padded s", "shared s", "spread", "shared / padded", "read as", "costs")
AGREEMENT = 0.05
"""Largest relative difference of both ways' hidden states that rounding explains."""


@dataclass(frozen=True)
class SharingPoint:
    """Both ways on the same requests: siblings, prompt and response tokens, share of tokens saved, seconds by round."""

    siblings: int
    prompt: int
    response: str
    saving: float
    padded: list[float]
    shared: list[float]

    @property
    def ratio(self) -> float:
        """Median seconds of `read_shared` over those of `read_padded`."""
        return statistics.median(self.shared) / statistics.median(self.padded)

    @property
    def chosen(self) -> str:
        """The way that the scorer takes, by SHARING_PAYS."""
        return "shared" if self.saving >= SHARING_PAYS else "padded"

    @property
    def regret(self) -> float:
        """Extra time of the chosen way over the other way, as a share; 0 where the chosen way is faster."""
        return max(self.ratio - 1 if self.chosen == "shared" else 1 / self.ratio - 1, 0.0)


def both_ways(body: torch.nn.Module, requests: list[ScoreRequest]) -> dict[str, Step]:
    """Returns both ways as steps. Raises ValueError where their hidden states differ."""
    device = torch.device("cpu")
    padded, shared = (read(body, requests, device).float() for read in (read_padded, read_shared))
    if (error := ((padded - shared).norm() / padded.norm()).item()) > AGREEMENT:
        raise ValueError(f"read_shared differs from read_padded by {error:.1%}")
    return {read.__name__: reading(read, body, requests) for read in (read_padded, read_shared)}


def reading(read: Callable[..., Tensor], body: torch.nn.Module, requests: list[ScoreRequest]) -> Step:
    """Returns one way as a step."""

    def step() -> None:
        read(body, requests, torch.device("cpu"))

    return step


@torch.inference_mode()
def measure_sharing(
    size: TeacherSize, dtype: torch.dtype, siblings: list[int], prompts: list[int], response: int, repeats: int
) -> list[SharingPoint]:
    """Measures all pairs of siblings and prompt lengths, with equal responses and with mixed lengths."""
    body = make_teacher(size, dtype, max(prompts) + response).get_decoder()
    mixed = [response // 4, response // 2, 3 * response // 4, response]
    points = []
    for count in siblings:
        for prompt in prompts:
            for responses in ([response], mixed):
                requests = rollouts(size.vocabulary, [prompt], responses, count)
                seconds = interleaved(both_ways(body, requests), repeats, torch.device("cpu"))
                text = str(response) if len(responses) == 1 else f"{responses[0]}-{response}"
                points.append(SharingPoint(count, prompt, text, shared_saving(requests), *seconds.values()))
    return points


def break_even(points: list[SharingPoint]) -> str:
    """Interpolates the share saved from which sharing is faster, where the ratio falls below 1."""
    ordered = sorted(points, key=lambda point: point.saving)
    crossings = [(a, b) for a, b in pairwise(ordered) if a.ratio >= 1 > b.ratio]
    if not crossings:
        return f"below {ordered[0].saving:.3f}" if ordered[0].ratio < 1 else f"above {ordered[-1].saving:.3f}"
    a, b = crossings[-1]
    return f"{a.saving + (b.saving - a.saving) * (a.ratio - 1) / (a.ratio - b.ratio):.3f}"


def cells(point: SharingPoint) -> list[str]:
    """Returns one row of the table."""
    return [
        str(point.siblings),
        str(point.prompt),
        point.response,
        f"{point.saving:.3f}",
        f"{statistics.median(point.padded):.3f}",
        f"{statistics.median(point.shared):.3f}",
        f"{max(spread(point.padded), spread(point.shared)):.0%}",
        f"{point.ratio:.2f}",
        point.chosen,
        f"{point.regret:.0%}",
    ]


def sharing_section(size: TeacherSize, dtype: str, points: list[SharingPoint]) -> list[str]:
    """Returns the table, and the break-even for each kind of response lengths."""
    lines = ["", f"## One prompt read once: {size}, {dtype}", ""]
    lines += map(row, [COLUMNS, ["---"] * len(COLUMNS), *map(cells, points)])
    lines += ["", f"`batching.SHARING_PAYS` = {SHARING_PAYS}."]
    for response in dict.fromkeys(point.response for point in points):
        same = [point for point in points if point.response == response]
        worst = max(point.regret for point in same)
        lines.append(
            f"Responses of {response} tokens: break-even at a share saved of {break_even(same)}; the way that the "
            f"constant chooses costs at most {worst:.0%} more than the other."
        )
    return lines
