"""Prompt templates, and the known instructions that are removed before a template is applied.

A template is a text that contains `{question}` once. A question is bare if no known instruction comes before or after
it; `strip(fill(template, question))` gives the bare question again.
"""

import re

from opd_verl.config.errors import ConfigError

QUESTION = "{question}"
TEMPLATES = {
    "boxed": QUESTION + " Please reason step by step, and put your final answer within \\boxed{}.",
    "dapo": (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\n" + QUESTION + "\n\nRemember to put "
        'your answer on its own line after "Answer:".'
    ),
    "none": QUESTION,
}
INSTRUCTIONS = [
    r"Please reason step by step, and put your final answer within \\boxed\{(?:\{\})?\}\.?",
    r"Let['\u2019]s think step by step and output the final answer (?:within \\boxed\{\}\.?|after \"####\"\.?)",
    r"Solve the following math problem step by step\. The last line of your response should be of the form Answer: "
    r"\$?Answer \(without quotes\) where \$?Answer is the answer to the problem\.",
    r"Remember to put your answer on its own line after \"Answer:\"(?:, and you do not need to use a \\\\?boxed "
    r"command)?\.",
]
"""Patterns of known instructions: the papers' suffix (with doubled braces in the DAPO file), the suffixes of verl's
GSM8K and MATH files, and both halves of DAPO's instruction."""

_ANY = "|".join(f"(?:{text})".replace(" ", r"\s+") for text in INSTRUCTIONS)
_IN_FRONT, _BEHIND = re.compile(rf"\A\s*(?:{_ANY})\s*"), re.compile(rf"\s*(?:{_ANY})\s*\Z")


def template_text(name: str) -> str:
    """Returns the template called `name`, or `name` itself if it is a template. Raises ConfigError otherwise."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name.count(QUESTION) != 1:
        problem = f"neither one of {', '.join(TEMPLATES)} nor a text that contains {QUESTION} once"
        raise ConfigError("--template", name, problem, "choose one of these names, or write 'Problem: {question}'")
    return name


def fill(template: str, question: str) -> str:
    """Returns the template with the question in its place."""
    return template.replace(QUESTION, question)


def unfill(template: str, text: str) -> str:
    """Returns the question of a text that this template made; returns any other text as it is."""
    front, behind = template.split(QUESTION)
    fits = len(text) >= len(front) + len(behind) and text.startswith(front) and text.endswith(behind)
    return text[len(front) : len(text) - len(behind)] if fits else text


def strip(text: str, *templates: str | None) -> str:
    """Returns the bare question, without known instructions and the first of `templates` that made the text."""
    for template in filter(None, templates):
        if (inside := unfill(template, text)) != text:
            text = inside
            break
    while (shorter := _BEHIND.sub("", _IN_FRONT.sub("", text))) != text:
        text = shorter
    return text.strip()
