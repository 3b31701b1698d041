"""Rollouts as self-contained HTML: every token on an orange to blue scale of its r_t. Pure text.

Orange and blue are told apart by colour-blind readers, and negative tokens are underlined as well. The colours are
classes with a translucent background, so that the same spans suit a light and a dark page.
"""

import math
from collections.abc import Sequence
from html import escape

from opd_verl.tracking.samples.record import RolloutRecord, Token

NEGATIVE, POSITIVE = (213, 94, 0), (0, 114, 178)
"""Vermilion and blue of the Okabe-Ito palette."""
LEVELS = 8
"""Shades on either side of 0."""
STRONGEST = 0.75
"""Opacity of the strongest shade; text on it stays readable."""
SHARE = 0.98
"""Share of the shown tokens whose |r_t| the scale covers: a single outlier must not turn all others white."""
PAGE_STYLE = """
body{font:14px system-ui,sans-serif;margin:1em;color:#111;background:#fff}
table{border-collapse:collapse;width:100%}td,th{border:1px solid #bbb;padding:.4em;vertical-align:top;text-align:left}
.number{text-align:right;white-space:nowrap}
"""
TOKEN_STYLE = """
.text{font:13px/1.75 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;max-height:40em;overflow:auto}
.text span{border-radius:2px;box-shadow:inset 0 0 0 1px #8883}
.text .masked,.key .masked{background:repeating-linear-gradient(135deg,#8885 0 3px,#8882 3px 6px)}
.key span{padding:0 .5em;border-radius:2px}
"""


def shades() -> str:
    """CSS classes of the shades: `n1` to `n8` for negative r_t, underlined more and more; `p1` to `p8` for positive."""
    rules = []
    for name, parts in (("n", NEGATIVE), ("p", POSITIVE)):
        for level in range(1, LEVELS + 1):
            opacity = STRONGEST * level / LEVELS
            rules.append(f".{name}{level}{{background:rgb({parts[0]} {parts[1]} {parts[2]}/{opacity:.2f})}}")
    lines = (("dotted", range(1, 4)), ("solid", range(4, 7)), ("double", range(7, LEVELS + 1)))
    for line, levels in lines:
        chosen = ",".join(f".n{level}" for level in levels)
        rules.append(f"{chosen}{{text-decoration:underline {line};text-underline-offset:3px}}")
    return "\n".join(rules)


STYLE = f"<style>{PAGE_STYLE}{TOKEN_STYLE}{shades()}</style>"


def page(step: int, samples: Sequence[RolloutRecord]) -> str:
    """The page of a step: a table of its samples."""
    scale = scale_of(samples)
    head = "".join(f"<th>{name}</th>" for name in ("rollout", "prompt", "response", "tokens", "mean r_t", "score"))
    rows = "\n".join(row(sample, scale) for sample in samples)
    title = f"Rollouts of step {step}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{STYLE}</head>\n'
        f"<body><h1>{title}</h1>\n{legend(scale)}\n<table><tr>{head}</tr>\n{rows}\n</table></body></html>\n"
    )


def response_page(sample: RolloutRecord, scale: float) -> str:
    """A page with one response, for a cell of wandb's table."""
    return f'<meta charset="utf-8">{STYLE}{legend(scale)}{response(sample.tokens, scale)}'


def row(sample: RolloutRecord, scale: float) -> str:
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


def response(tokens: Sequence[Token], scale: float, titles: bool = True) -> str:
    """The tokens side by side; without titles if another part of the page shows the numbers."""
    return f'<div class="text">{"".join(token_span(token, scale, titles) for token in tokens)}</div>'


def token_span(token: Token, scale: float, title: bool = True) -> str:
    """A token on its colour; its numbers show under the mouse."""
    shade = shade_class(token.reward, scale) if token.trained else "masked"
    attributes = (f' class="{shade}"' if shade else "") + (f' title="{facts(token)}"' if title else "")
    return f"<span{attributes}>{escape(visible(token.text))}</span>"


def facts(token: Token) -> str:
    """A token's numbers for its title, a line each."""
    lines = [f"id {token.id}", f"log p {token.log_p:.4f}", f"log q {token.log_q:.4f}", f"r_t {token.reward:.4f}"]
    lines += [] if token.quadrant is None else [f"Q{token.quadrant}" if token.quadrant else "r_t is 0"]
    for side, entropy in (("student", token.student_entropy), ("teacher", token.teacher_entropy)):
        lines += [] if entropy is None else [f"{side} entropy {entropy:.4f}"]
    return "&#10;".join([*lines, *([] if token.trained else ["masked"])])


def visible(text: str) -> str:
    """The text with a sign for a line's end, or for a token that is only a part of a character."""
    return text.replace("\r", "␍").replace("\n", "↵\n") or "·"


def shade_class(reward: float, scale: float) -> str:
    """The CSS class: `n8` (-scale and below) to `p8` (scale and above); no class around 0 and for NaN."""
    if math.isnan(reward):
        return ""
    level = round(LEVELS * min(abs(reward) / scale, 1.0))
    return f"{'p' if reward > 0 else 'n'}{level}" if level else ""


def scale_of(samples: Sequence[RolloutRecord]) -> float:
    """The |r_t| at the ends of the scale, the same on both sides; 1 if all tokens are 0 or masked."""
    shown = (token for sample in samples for token in sample.tokens if token.trained)
    values = sorted(abs(token.reward) for token in shown if not math.isnan(token.reward))
    end = values[min(int(SHARE * len(values)), len(values) - 1)] if values else 0.0
    return end or 1.0


def legend(scale: float) -> str:
    """The legend of the colours."""
    names = [*(f"n{level}" for level in range(LEVELS, 0, -1)), "", *(f"p{level}" for level in range(1, LEVELS + 1))]
    boxes = "".join(f'<span class="{name}">&nbsp;</span>' for name in names)
    return (
        f'<p class="key">r_t, nats: {-scale:.3g} {boxes} {scale:.3g} ({SHARE:.0%} of the tokens are within). Orange '
        "and underlined: negative, the teacher finds the token less likely than the student; blue: positive. "
        '<span class="masked">hatched</span>: masked. ·: part of a character. The mouse shows a token\'s numbers.</p>'
    )
