"""The student's prompts against the teacher's chat template."""

from typing import Any

import pytest
from omegaconf import OmegaConf
from preflight_harness import Files
from tiny_models import tiny_tokenizer

from opd_verl.checks.preflight import preflight
from opd_verl.checks.template import check_options, check_template, rendered, template_options
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
    found = tiny_tokenizer()
    found.chat_template = template
    return found


def test_qwen3s_non_thinking_prompt_needs_its_option() -> None:
    assert rendered(tokenizer(QWEN3), {}) == rendered(tokenizer(CHATML), {})
    prompt = rendered(tokenizer(QWEN3), {"enable_thinking": False})
    assert prompt is not None and prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert rendered(tokenizer(None), {}) is None


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_templates_that_render_alike_are_alike(options: dict[str, Any]) -> None:
    assert check_template("opd.teacher", tokenizer(QWEN3), tokenizer(QWEN3), options, True) is None
    other_text = QWEN3.replace("message['role']", "message.role")
    assert check_template("opd.teacher", tokenizer(other_text), tokenizer(QWEN3), options, True) is None


def test_a_teacher_with_other_prompts_is_refused_and_both_are_shown() -> None:
    student, teacher, options = tokenizer(QWEN3), tokenizer(CHATML), {"enable_thinking": False}
    assert check_template("opd.teacher", teacher, student, {}, True) is None
    with pytest.raises(ConfigError) as refused:
        check_template("opd.teacher", teacher, student, options, True)
    message = str(refused.value)
    assert "opd.teacher.same_template" in message and r"<think>\n\n</think>" in message
    assert "+data.apply_chat_template_kwargs.enable_thinking=false" in message and "same_template=false" in message
    said = check_template("opd.teacher", teacher, student, options, False)
    assert said is not None and said.startswith("prompts that read") and "<think>" in said


def test_a_side_without_a_template() -> None:
    assert check_template("opd.teacher", tokenizer(CHATML), tokenizer(None), {}, True) is None
    said = check_template("opd.teacher", tokenizer(None), tokenizer(CHATML), {}, True)
    assert said == "no chat template of its own; it reads the student's prompts"


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
