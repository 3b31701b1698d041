"""The token view: sample rollouts coloured by r_t, and compact JSON from which `view.js` tells a token's details."""

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from opd_verl.report.overview import badge, number
from opd_verl.report.quadrant_map import NAMES
from opd_verl.report.runs import ReportedRun, ShownRollout
from opd_verl.tracking.samples.html import response, scale_of, visible

DIGITS = 4
FILTERS = {"all": "all", "negative": "r_t < 0"} | {str(which): f"Q{which}" for which in NAMES}
INTRO = (
    "Choose a rollout, then point at a token, tap it, or walk with the arrow keys. Orange and underlined: the teacher "
    "finds the token less likely than the student did, training pushes it down; blue: more likely, it is pushed up. "
    "The buttons of the second row leave only some tokens in full colour."
)
HINT = "Point at a token, tap it, or press Tab and walk with the arrow keys: its numbers stand here."


def token_view(runs: Sequence[ReportedRun]) -> str:
    """All rollouts of all runs on one scale; "" where there is none."""
    found = [(run, shown) for run in runs for shown in run.shown]
    if not found:
        return ""
    scale = scale_of([shown.sample for _, shown in found])
    rollouts = "\n".join(rollout(f"rollout-{at}", run, shown, scale) for at, (run, shown) in enumerate(found))
    filters = "".join(f'<button type="button" data-only="{value}">{text}</button>' for value, text in FILTERS.items())
    names = json.dumps({**NAMES, 0: "r_t is exactly 0"})
    return (
        f'<div class="view" data-names="{escape(names)}"><div role="group" aria-label="Rollouts">'
        f"{choices(found)}</div>\n"
        f'<div class="buttons" role="group" aria-label="Tokens in full colour">{filters}</div>{scale_key(scale)}\n'
        f'<div class="split"><div>{rollouts}</div>'
        f'<aside class="panel" aria-live="polite"><p>{HINT}</p></aside></div></div>'
    )


def choices(rollouts: Sequence[tuple[ReportedRun, ShownRollout]]) -> str:
    """A button for each rollout: a line for each run, in groups of one step."""
    lines: dict[str, list[str]] = {}
    group = None
    for at, (run, shown) in enumerate(rollouts):
        line = lines.setdefault(run.letter, [badge(run)])
        if group != (run.letter, shown.step):
            group = (run.letter, shown.step)
            line.append(f'<span class="group">{step_text(shown)}</span>')
        mark = {True: " ✓", False: " ✗", None: ""}[shown.sample.correct]
        line.append(f'<button type="button" data-show="rollout-{at}">{escape(shown.sample.why)}{mark}</button>')
    return "".join(f'<div class="buttons">{"".join(line)}</div>' for line in lines.values())


def step_text(shown: ShownRollout) -> str:
    """Where a rollout is from."""
    return "probe" if shown.step is None else f"step {shown.step}"


def rollout(name: str, run: ReportedRun, shown: ShownRollout, scale: float) -> str:
    """Its head, its prompt to be opened, its tokens, and their numbers as JSON."""
    sample = shown.sample
    verdict = {True: "✓ correct", False: "✗ not correct", None: "not judged"}[sample.correct]
    facts = [verdict, f"score {number(sample.score)}", f"mean r_t {number(sample.mean_reward)}"]
    facts += [f"{len(sample.tokens)} tokens", *([f"teacher {sample.teacher}"] if sample.teacher else []), sample.name]
    return (
        f'<article class="rollout" id="{name}"><h3>{badge(run)} {step_text(shown)}: {escape(sample.why)}</h3>'
        f'<p class="facts">{escape(" · ".join(facts))}</p>'
        f'<details><summary>prompt</summary><div class="text">{escape(sample.prompt)}</div></details>'
        f"{response(sample.tokens, scale, titles=False)}"
        f'<script type="application/json">{numbers_json(shown)}</script></article>'
    )


def numbers_json(shown: ShownRollout) -> str:
    """Tokens as lists [id, log p, log q, r_t, trained, student's and teacher's entropy, quadrant, place and log q of
    each of the teacher's top]; each text once, named by its place. Cannot end its `<script>`."""
    texts: dict[str, int] = {}
    rows: list[list[Any]] = []
    for token in shown.sample.tokens:
        top = [part for text, log_q in token.top or () for part in (texts.setdefault(text, len(texts)), compact(log_q))]
        numbers = (token.log_p, token.log_q, token.reward, token.student_entropy, token.teacher_entropy)
        log_p, log_q, reward, *entropies = map(compact, numbers)
        rows.append([token.id, log_p, log_q, reward, int(token.trained), *entropies, token.quadrant, top])
    content = {"texts": [visible(text) for text in texts], "tokens": rows}
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def compact(value: float | None) -> float | None:
    """Rounded; None for NaN and infinities."""
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)


def scale_key(scale: float) -> str:
    """The ends of the scale."""
    shades = [*(f"n{level}" for level in range(8, 0, -1)), "none", *(f"p{level}" for level in range(1, 9))]
    boxes = "".join(f'<span class="{shade}">&nbsp;</span>' for shade in shades)
    return (
        f'<p class="key">r_t <b>{-scale:.3g}</b> {boxes} <b>{scale:.3g}</b> nats <span class="masked">masked</span></p>'
    )
