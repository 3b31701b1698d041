"""Rollouts as one self-contained HTML page: every token on a red, white and blue scale of its r_t. Pure text."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

RED, WHITE, BLUE = (214, 96, 64), (255, 255, 255), (64, 96, 214)
GREY = "#d4d4d4"
SHARE = 0.98
"""Of the shown tokens' |r_t| that the scale covers: one outlier must not turn all others white."""
STYLE = """<style>
body{font:14px system-ui,sans-serif;margin:1em;color:#111;background:#fff}
table{border-collapse:collapse;width:100%}td,th{border:1px solid #bbb;padding:.4em;vertical-align:top;text-align:left}
.text{font:13px/1.6 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;max-height:40em;overflow:auto}
.text span{border-radius:2px;outline:1px solid #0001}.number{text-align:right;white-space:nowrap}
.scale{display:inline-block;width:16em;height:1em;border:1px solid #bbb;vertical-align:middle}
</style>"""


@dataclass(frozen=True)
class Token:
    """A token of a response; log-probs and reward in nats."""

    id: int
    text: str
    log_p: float
    log_q: float
    reward: float
    trained: bool
    """False: masked, it has no part in the loss."""


@dataclass(frozen=True)
class Sample:
    """A rollout to show."""

    name: str
    why: str
    prompt: str
    tokens: Sequence[Token]
    mean_reward: float
    score: float
    correct: bool | None


def page(step: int, samples: Sequence[Sample]) -> str:
    """A table of the samples."""
    scale = scale_of(samples)
    head = "".join(f"<th>{name}</th>" for name in ("rollout", "prompt", "response", "tokens", "mean r_t", "score"))
    rows = "\n".join(row(sample, scale) for sample in samples)
    title = f"Rollouts of step {step}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{STYLE}</head>\n'
        f"<body><h1>{title}</h1>\n{legend(scale)}\n<table><tr>{head}</tr>\n{rows}\n</table></body></html>\n"
    )


def response_page(sample: Sample, scale: float) -> str:
    """One response alone, for a cell of wandb's table, which is a page of its own."""
    return f'<meta charset="utf-8">{STYLE}{legend(scale)}{response(sample.tokens, scale)}'


def row(sample: Sample, scale: float) -> str:
    """A sample's row of the table."""
    verdict = {None: "", True: "<br>correct", False: "<br>not correct"}[sample.correct]
    cells = (
        f"<td>{escape(sample.name)}<br>{escape(sample.why)}</td>",
        f'<td><div class="text">{escape(sample.prompt)}</div></td>',
        f"<td>{response(sample.tokens, scale)}</td>",
        *(f'<td class="number">{value}</td>' for value in (len(sample.tokens), f"{sample.mean_reward:.4f}")),
        f'<td class="number">{sample.score:g}{verdict}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def response(tokens: Sequence[Token], scale: float) -> str:
    """The tokens side by side."""
    return f'<div class="text">{"".join(token_span(token, scale) for token in tokens)}</div>'


def token_span(token: Token, scale: float) -> str:
    """A token on its colour; what it is made of shows under the mouse."""
    background = colour(token.reward, scale) if token.trained else GREY
    facts = [f"id {token.id}", f"log p {token.log_p:.4f}", f"log q {token.log_q:.4f}", f"r_t {token.reward:.4f}"]
    title = "&#10;".join([*facts, *([] if token.trained else ["masked"])])
    return f'<span style="background:{background}" title="{title}">{visible(token.text)}</span>'


def visible(text: str) -> str:
    """Escaped; a line's end and a token that is only a part of a character get a sign of their own."""
    return escape(text).replace("\r", "␍").replace("\n", "↵\n") or "·"


def colour(reward: float, scale: float) -> str:
    """From red (-scale and below) over white (0) to blue (scale and above), as `#rrggbb`."""
    end, share = (BLUE if reward > 0 else RED), min(abs(reward) / scale, 1.0)
    mixed = (round(white + (other - white) * share) for white, other in zip(WHITE, end, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def scale_of(samples: Sequence[Sample]) -> float:
    """The |r_t| at the ends of the scale, the same on both sides; 1 where all tokens are 0 or masked."""
    values = sorted(abs(token.reward) for sample in samples for token in sample.tokens if token.trained)
    found = values[min(int(SHARE * len(values)), len(values) - 1)] if values else 0.0
    return found or 1.0


def legend(scale: float) -> str:
    """What the colours mean."""
    ends = ",".join(colour(value, 1.0) for value in (-1.0, 0.0, 1.0))
    return (
        f'<p>r_t, nats: {-scale:.3g} <span class="scale" style="background:linear-gradient(to right,{ends})"></span> '
        f"{scale:.3g} ({SHARE:.0%} of the tokens are within; red: negative, blue: positive). "
        f'<span style="background:{GREY}">&nbsp;grey&nbsp;</span>: masked. ·: part of a character. '
        "The mouse shows a token's id, log p, log q and r_t.</p>"
    )
