"""Compares the student's prompts with the teacher's chat template: a teacher scores best the prompts of its training.

Both templates render one question with `data.apply_chat_template_kwargs` (the Qwen3 non-thinking prompt, for example,
is `+data.apply_chat_template_kwargs.enable_thinking=false`), and the texts must be equal.
"""

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import cast

from jinja2 import Environment, meta
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from opd_verl.config.errors import ConfigError

PROBE = [{"role": "user", "content": "What is 1 + 1?"}]
OPTIONS = "data.apply_chat_template_kwargs"
SHOWN, BEFORE = 48, 16
"""Characters of a prompt that a message shows, and how many of them come before the place where two prompts part."""


def template_options(config: DictConfig) -> dict[str, object]:
    """`data.apply_chat_template_kwargs` as plain values."""
    options = config.data.get("apply_chat_template_kwargs") or OmegaConf.create({})
    return cast(dict[str, object], OmegaConf.to_container(options))


def rendered(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, object]) -> str | None:
    """The prompt that a tokenizer's template makes of the probe; None where it has no template."""
    if not tokenizer.chat_template:
        return None
    # transformers types the keyword arguments that it knows; a template's own options come on top of them.
    render = cast(Callable[..., str], tokenizer.apply_chat_template)
    return render(PROBE, add_generation_prompt=True, tokenize=False, **options)


def check_options(student: PreTrainedTokenizerBase, options: Mapping[str, object]) -> None:
    """The student's template must read every option; Jinja would ignore a misspelt option without a word.

    Raises:
        ConfigError: names the option, and the variables that the template reads.
    """
    template = student.chat_template
    if not options or not isinstance(template, str):
        return
    reads = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template))
    for name, value in options.items():
        if name not in reads:
            problem = f"the student's chat template reads no such variable (it reads {', '.join(sorted(reads))})"
            raise ConfigError(f"{OPTIONS}.{name}", value, problem, f"~{OPTIONS}.{name}")


def template_difference(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, options: Mapping[str, object]
) -> str | None:
    """Both prompts from where they part, as a text; None where they are equal or a side has no template."""
    ours, theirs = rendered(student, options), rendered(teacher, options)
    if ours is None or theirs is None or ours == theirs:
        return None
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
    start = max(alike - BEFORE, 0)
    return f"{ours[start : start + SHOWN]!r} where the teacher's own prompt has {theirs[start : start + SHOWN]!r}"
