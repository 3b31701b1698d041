"""The token view: sample rollouts coloured by r_t, and compact JSON from which `view.js` shows a token's details."""

import json
import math
from collections.abc import Sequence
from html import escape

from opd_verl.report.overview import badge, number
from opd_verl.report.quadrant_map import NAMES
from opd_verl.report.runs import ReportedRun, ShownRollout
from opd_verl.tracking.samples.html import response, scale_of, visible

DIGITS = 4
FILTERS = {"all": "all", "negative": "r_t < 0"} | {str(which): f"Q{which}" for which in NAMES}
INTRO = (
    "Choose a rollout, then point at a token, tap it, or walk with the arrow keys. Orange and underlined: the teacher "
    "finds the token less likely than the student did, training pushes it down; blue: more likely, it is pushed up. "
    "The buttons of the second row dim all other tokens."
)
HINT = "Point at a token, tap it, or press Tab and walk with the arrow keys: its numbers appear here."


def token_view(runs: Sequence[ReportedRun]) -> str:
    """All rollouts of all runs, coloured on one scale; "" if there are none."""
    rollouts = [(run, shown) for run in runs for shown in run.shown]
    if not rollouts:
        return ""
    scale = scale_of([shown.sample for _, shown in rollouts])
    articles = "\n".join(rollout(f"rollout-{at}", run, shown, scale) for at, (run, shown) in enumerate(rollouts))
    filters = "".join(f'<button type="button" data-only="{value}">{text}</button>' for value, text in FILTERS.items())
    names = json.dumps({**NAMES, 0: "r_t is exactly 0"})
    return (
        f'<div class="view" data-names="{escape(names)}"><div role="group" aria-label="Rollouts">'
        f"{choices(rollouts)}</div>\n"
        f'<div class="buttons" role="group" aria-label="Tokens in full colour">{filters}</div>{scale_key(scale)}\n'
        f'<div class="split"><div>{articles}</div>'
        f'<aside class="panel" aria-live="polite"><p>{HINT}</p></aside></div></div>'
    )


def choices(rollouts: Sequence[tuple[ReportedRun, ShownRollout]]) -> str:
    """A button for each rollout: a line for each run, grouped by step."""
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
    """The origin of a rollout: probe or step."""
    return "probe" if shown.step is None else f"step {shown.step}"


def rollout(name: str, run: ReportedRun, shown: ShownRollout, scale: float) -> str:
    """A rollout as HTML: heading, facts, prompt behind a button, tokens, and their numbers as JSON."""
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
    """The tokens' numbers for `view.js`, which reads the lists by position.

    A token is [id, log p, log q, r_t, trained, student's entropy, teacher's entropy, quadrant, top]; `top` alternates
    the place of a text in `texts` with its log q, so that each text is written only once.
    """
    texts: dict[str, int] = {}
    rows: list[list[object]] = []
    for token in shown.sample.tokens:
        top = [part for text, log_q in token.top or () for part in (texts.setdefault(text, len(texts)), compact(log_q))]
        numbers = (token.log_p, token.log_q, token.reward, token.student_entropy, token.teacher_entropy)
        log_p, log_q, reward, *entropies = map(compact, numbers)
        rows.append([token.id, log_p, log_q, reward, int(token.trained), *entropies, token.quadrant, top])
    content = {"texts": [visible(text) for text in texts], "tokens": rows}
    # Without "<" in the JSON, no token's text can end its <script> element.
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def compact(value: float | None) -> float | None:
    """A rounded number; None for NaN and infinities."""
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)


def scale_key(scale: float) -> str:
    """The legend of the colours: the scale's ends, all shades, and the mark of masked tokens."""
    shades = [*(f"n{level}" for level in range(8, 0, -1)), "none", *(f"p{level}" for level in range(1, 9))]
    boxes = "".join(f'<span class="{shade}">&nbsp;</span>' for shade in shades)
    return (
        f'<p class="key">r_t <b>{-scale:.3g}</b> {boxes} <b>{scale:.3g}</b> nats <span class="masked">masked</span></p>'
    )
