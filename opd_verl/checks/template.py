"""The student's prompts against the teacher's chat template: a teacher scores best what it was trained to read.

Both templates render one question with `data.apply_chat_template_kwargs` (the Qwen3 non-thinking prompt, for example,
is `+data.apply_chat_template_kwargs.enable_thinking=false`), and the texts must be equal.
"""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from jinja2 import Environment, meta
from omegaconf import DictConfig, OmegaConf

from opd_verl.config.errors import ConfigError

PROBE = [{"role": "user", "content": "What is 1 + 1?"}]
OPTIONS = "data.apply_chat_template_kwargs"
SHOWN, BEFORE = 48, 16
"""Characters of a prompt that a message shows, and how many of them come before the place where two prompts part."""


def template_options(config: DictConfig) -> dict[str, Any]:
    """`data.apply_chat_template_kwargs` as plain values."""
    found: Any = OmegaConf.to_container(config.data.get("apply_chat_template_kwargs") or OmegaConf.create({}))
    return found


def rendered(tokenizer: Any, options: Mapping[str, Any]) -> str | None:
    """The prompt that a tokenizer's template makes of the probe; None where it has no template."""
    if not tokenizer.chat_template:
        return None
    return tokenizer.apply_chat_template(PROBE, add_generation_prompt=True, tokenize=False, **options)


def check_options(student: Any, options: Mapping[str, Any]) -> None:
    """Every option is read by the student's template; Jinja would pass over a misspelt one without a word.

    Raises:
        ConfigError: names the option and those that the template reads.
    """
    template = student.chat_template
    if not options or not isinstance(template, str):
        return
    reads = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template))
    for name, value in options.items():
        if name not in reads:
            problem = f"the student's chat template reads no such variable (it reads {', '.join(sorted(reads))})"
            raise ConfigError(f"{OPTIONS}.{name}", value, problem, f"~{OPTIONS}.{name}")


def check_template(key: str, teacher: Any, student: Any, options: Mapping[str, Any], wanted: bool) -> str | None:
    """What is to be said of the two templates; None: they render alike.

    Args:
        key: the teacher's section.
        teacher, student: their tokenizers.
        wanted: whether a difference is an error.

    Raises:
        ConfigError: they differ; shows both prompts from where they part.
    """
    own, others = rendered(student, options), rendered(teacher, options)
    if own is None or own == others:
        return None
    if others is None:
        return "no chat template of its own; it reads the student's prompts"
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, others, strict=False)))
    start = max(alike - BEFORE, 0)
    parts = f"{own[start : start + SHOWN]!r} where the teacher's own prompt has {others[start : start + SHOWN]!r}"
    if wanted:
        problem = f"its chat template makes other prompts than the student's, which read {parts}"
        remedy = f"+{OPTIONS}.enable_thinking=false or another option of the templates, or "
        raise ConfigError(f"{key}.same_template", True, problem, f"{remedy}{key}.same_template=false")
    return f"prompts that read {parts}"
