"""Whether a teacher can score a student: one set of checks, whose refusals name keys of the command that asks."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tiny_models import tiny_tokenizer

from opd_verl.alignment.prepare import NAMES as ALIGNMENT
from opd_verl.checks.models import training_names
from opd_verl.checks.scorable import ScoringPair, SettingNames, scoring_checks
from opd_verl.config.errors import ConfigError
from opd_verl.probe.compatibility import NAMES as PROBE

COMMANDS = {
    "probe": ("hydra_configs.probe", "probe", PROBE),
    "alignment": ("hydra_configs.alignment", "alignment", ALIGNMENT),
}
KEY = re.compile(r"(\+*)\b([a-z]+(?:[._][a-z_]+)+)\b")
"""A dotted or underscored word, and the plus signs of an override in front of it."""
NO_KEYS = {"tokenizer_config.json", "eos_token", "vocab_size"}
"""Words of a message that look like keys: a model's own file, and a key of its config."""
PROMPT = "{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"


def tokenizer(template: str = PROMPT, **changes: Any) -> Any:
    made = tiny_tokenizer()
    made.chat_template = template
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def pair(**changes: Any) -> ScoringPair:
    config: Any = SimpleNamespace(vocab_size=1000, max_position_embeddings=64)
    own = tokenizer()
    return replace(ScoringPair(own, tokenizer(), "/teacher", "/teacher", config, 40, {}), **changes)


def other_tokenizer() -> Any:
    made = tokenizer()
    made.add_tokens(["<another token>"])
    return made


BAD: dict[str, dict[str, Any]] = {
    "tokenizer": {"teacher": other_tokenizer()},
    "end of a response": {"teacher": tokenizer(eos_token="w2")},
    "vocabulary": {"config": SimpleNamespace(vocab_size=3, max_position_embeddings=64)},
    "context": {"longest": 65},
    "chat template": {"teacher": tokenizer(PROMPT + "Think!")},
}


def refusal(problem: str, names: SettingNames) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        for check in scoring_checks(pair(**BAD[problem]), names).values():
            check()
    return refused.value


def keys_in(text: str) -> list[tuple[bool, str]]:
    """(whether it is added with `+`, key) of everything that looks like a key."""
    return [(bool(plus), key) for plus, key in KEY.findall(text) if key not in NO_KEYS]


def unknown_keys(error: ConfigError, names: SettingNames, config: Any) -> list[str]:
    """Keys that a refusal names and the config does not have. An added key needs only the section above it."""
    named = [(False, error.key), *keys_in(str(error)), *((False, key) for key in names.shorten.split(" or "))]
    places = [key.rpartition(".")[0] if added else key for added, key in named]
    missing = object()
    return [key for key in places if OmegaConf.select(config, key, default=missing) is missing]


def test_a_pair_that_fits_passes() -> None:
    assert [check() for check in scoring_checks(pair(), PROBE).values()] == [None] * 4
    assert [check() for check in scoring_checks(pair(longest=64), PROBE).values()] == [None] * 4


@pytest.mark.parametrize("problem", BAD)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_refusal_names_keys_that_the_command_has(command: str, problem: str) -> None:
    module, name, names = COMMANDS[command]
    with initialize_config_module(module, version_base=None):
        config = compose(name)
    error = refusal(problem, names)
    assert not unknown_keys(error, names, config), error


@pytest.mark.parametrize("problem", BAD)
def test_the_words_of_a_training_are_strange_to_a_probe(problem: str) -> None:
    """The test above can fail: a training's names are no keys of a probe."""
    with initialize_config_module("hydra_configs.probe", version_base=None):
        config = compose("probe")
    names = training_names("opd.teacher", with_context=True, generated=True)
    assert unknown_keys(refusal(problem, names), names, config)


def test_the_remedies() -> None:
    assert refusal("context", PROBE).remedy == "lower max_tokens by 1"
    assert refusal("context", training_names("opd.teacher", True, False)).remedy == (
        "lower data.max_response_length or opd.context.max_tokens by 1"
    )
    template = refusal("chat template", training_names("opd.teachers.big", False, False))
    assert template.key == "opd.teachers.big.same_template"
    assert template.remedy.startswith("+data.apply_chat_template_kwargs.enable_thinking=false")
    assert template.remedy.endswith("opd.teachers.big.same_template=false")
    assert "same_template" not in str(refusal("chat template", PROBE))


def test_a_teacher_without_a_template_is_a_remark() -> None:
    checks = scoring_checks(pair(teacher=tokenizer(template="")), PROBE)
    assert checks["chat template"]() == "no chat template of its own; it reads the student's prompts"
