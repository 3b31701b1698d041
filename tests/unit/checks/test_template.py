"""The student's prompts against the teacher's chat template."""

from typing import Any

import pytest
from omegaconf import OmegaConf
from preflight_harness import Files
from tiny_models import tiny_tokenizer
from transformers import PretrainedConfig

from opd_verl.checks.models import training_names
from opd_verl.checks.preflight import preflight
from opd_verl.checks.scorable import ScoringPair, check_template
from opd_verl.checks.template import check_options, rendered, template_difference, template_options
from opd_verl.config.errors import ConfigError

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
NON_THINKING = (
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
)
QWEN3 = CHATML + NON_THINKING
"""The end of Qwen3's template: with enable_thinking=false the assistant's turn begins with an empty thought."""


def tokenizer(template: str | None) -> Any:
    actual = tiny_tokenizer()
    actual.chat_template = template
    return actual


NAMES = training_names("opd.teacher", with_context=False, generated=False)


def pair(student: Any, teacher: Any, options: dict[str, Any]) -> ScoringPair:
    """A pair of which only the chat templates are looked at."""
    return ScoringPair(student, teacher, "/teacher", "/teacher", PretrainedConfig(), 40, options)


def test_qwen3s_non_thinking_prompt_needs_its_option() -> None:
    assert rendered(tokenizer(QWEN3), {}) == rendered(tokenizer(CHATML), {})
    prompt = rendered(tokenizer(QWEN3), {"enable_thinking": False})
    assert prompt is not None and prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert rendered(tokenizer(None), {}) is None


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_templates_that_render_alike_are_alike(options: dict[str, Any]) -> None:
    assert template_difference(tokenizer(QWEN3), tokenizer(QWEN3), options) is None
    other_text = QWEN3.replace("message['role']", "message.role")
    assert template_difference(tokenizer(QWEN3), tokenizer(other_text), options) is None


def test_a_teacher_with_other_prompts_is_refused_and_both_are_shown() -> None:
    student, teacher, options = tokenizer(QWEN3), tokenizer(CHATML), {"enable_thinking": False}
    assert check_template(pair(student, teacher, {}), NAMES) is None
    with pytest.raises(ConfigError) as refused:
        check_template(pair(student, teacher, options), NAMES)
    message = str(refused.value)
    assert "opd.teacher.same_template" in message and r"<think>\n\n</think>" in message
    assert "+data.apply_chat_template_kwargs.enable_thinking=false" in message and "same_template=false" in message
    parts = template_difference(student, teacher, options)
    assert parts is not None and "<think>" in parts and "where the teacher's own prompt has" in parts


def test_a_side_without_a_template() -> None:
    assert check_template(pair(tokenizer(None), tokenizer(CHATML), {}), NAMES) is None
    remark = check_template(pair(tokenizer(CHATML), tokenizer(None), {}), NAMES)
    assert remark == "no chat template of its own; it reads the student's prompts"


def test_an_option_that_nothing_reads_is_refused() -> None:
    check_options(tokenizer(QWEN3), {"enable_thinking": False})
    check_options(tokenizer(None), {"anything": 1})
    with pytest.raises(ConfigError, match=r"kwargs\.enable_thinkng=False.*it reads .*enable_thinking"):
        check_options(tokenizer(QWEN3), {"enable_thinkng": False})


def test_options_are_plain_values() -> None:
    config = OmegaConf.create({"data": {"apply_chat_template_kwargs": {"a": {"b": [1]}}}})
    assert template_options(config) == {"a": {"b": [1]}} and template_options(OmegaConf.create({"data": {}})) == {}


def test_the_run_is_refused_before_it_starts(files: Files, tmp_path: Any) -> None:
    tokenizer(QWEN3).save_pretrained(tmp_path / "teacher_tokenizer")
    thinking = "+data.apply_chat_template_kwargs.enable_thinking=false"
    config = files.config(f"opd.teacher.tokenizer_path={tmp_path / 'teacher_tokenizer'}", thinking)
    config.actor_rollout_ref.model.custom_chat_template = QWEN3
    (line,) = preflight(config)
    assert "prompts" not in line
    config.actor_rollout_ref.model.custom_chat_template = QWEN3.replace("assistant", "helper")
    with pytest.raises(ConfigError, match="same_template"):
        preflight(config)
    config.opd.teacher.same_template = False
    (line,) = preflight(config)
    assert "prompts that read" in line and "helper" in line
