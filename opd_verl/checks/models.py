"""Checks that read the models' config files and tokenizers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from opd_verl.checks import accepted
from opd_verl.checks.template import check_options, check_template, template_options
from opd_verl.config.errors import ConfigError, first_line
from opd_verl.config.opd import OpdConfig, context_tokens, every_teacher, teacher_key
from opd_verl.config.sections import Engine, TeacherConfig
from opd_verl.fused.head import LOGIT_KEYS
from opd_verl.objectives.names import Placement
from opd_verl.teacher.needs import looks_at_all
from opd_verl.utils.hub import looks_local, why_unloadable

STUDENT = "actor_rollout_ref.model.path"
TERMINAL = 120
"""Characters of a library's message: one line of a terminal."""


def check_models(config: DictConfig, opd: OpdConfig) -> list[str]:
    """Student and teachers exist, share a tokenizer, cover its ids, and the longest rollout fits all.

    Returns a line for each teacher that says what it was accepted with.
    """
    model = config.actor_rollout_ref.model
    student_config = load_config(STUDENT, model.path, model.trust_remote_code)
    tokenizer = load_tokenizer(STUDENT, model.tokenizer_path or model.path, model.trust_remote_code)
    if model.get("custom_chat_template") is not None:
        tokenizer.chat_template = model.custom_chat_template
    options = template_options(config)
    check_options(tokenizer, options)
    longest = config.data.max_prompt_length + config.data.max_response_length
    check_vocabulary(STUDENT, model.path, student_config, len(tokenizer))
    check_context(STUDENT, model.path, student_config, longest)
    context = context_tokens(opd)
    lines = [
        check_teacher_model(teacher_key(name), teacher, tokenizer, longest, context, options)
        for name, teacher in every_teacher(opd).items()
    ]
    check_k("opd.objective.k", opd.objective.k, len(tokenizer))
    if looks_at_all(opd):
        check_k("opd.diagnostics.k", opd.diagnostics.k, len(tokenizer))
    if opd.forward_kl.placement is not Placement.none:
        check_k("opd.forward_kl.k", opd.forward_kl.k, len(tokenizer))
    if opd.fused:
        check_plain_head(model.path, student_config)
    return lines


def check_teacher_model(
    section: str, teacher: TeacherConfig, tokenizer: Any, longest: int, context: int, options: Mapping[str, Any]
) -> str:
    """One teacher exists, has the student's tokenizer, covers its ids, reads the student's prompts as its own, the
    longest rollout and context fit it, and it fits a device. Returns `accepted.line`.
    """
    key = f"{section}.path"
    found = load_config(key, teacher.path, teacher.trust_remote_code)
    tokenizer_path = teacher.tokenizer_path or teacher.path
    other = load_tokenizer(key, tokenizer_path, teacher.trust_remote_code)
    check_same_tokenizer(tokenizer, other, key, tokenizer_path)
    prompts = check_template(section, other, tokenizer, options, teacher.same_template)
    check_vocabulary(key, teacher.path, found, len(tokenizer))
    check_context(key, teacher.path, found, longest, context, generated=teacher.engine is Engine.vllm)
    needed = accepted.weight_bytes(teacher, found)
    accepted.check_memory(section, teacher, needed)
    line = accepted.line(section, teacher, found, needed, tokenizer, other, longest + context)
    return line if prompts is None else f"{line}; {prompts}"


def load_config(key: str, path: str, trust_remote_code: bool) -> PretrainedConfig:
    """The text part of a model's config; a folder must exist, anything else is looked up as a hub name."""
    require_folder(key, path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        problem = f"no model config there ({first_line(error, TERMINAL)})"
        raise ConfigError(key, path, problem, "give a model folder or hub name") from error
    return config.get_text_config()


def load_tokenizer(key: str, path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """A model's tokenizer. Where a folder has none, transformers may make an empty one from the model's config."""
    require_folder(key, path)
    remedy = f"{key.rsplit('.', 1)[0]}.tokenizer_path=/path/to/tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(key, path, f"no tokenizer there ({first_line(error, TERMINAL)})", remedy) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ConfigError(key, path, "no tokenizer there", remedy)
    return tokenizer


def require_folder(key: str, path: str | None) -> None:
    """A folder that exists, or a hub name (`owner/name`) in the local cache or on a hub that can be reached.

    `~` is nobody's to expand: neither verl nor transformers does.
    """
    if path and Path(path).is_dir():
        return
    remedy = f"{key}=/path/to/model, or a hub name like owner/name"
    if path is None or looks_local(path):
        raise ConfigError(key, path, "no such model folder", remedy)
    if problem := why_unloadable(path):
        raise ConfigError(key, path, f"no such folder, {problem}", remedy)


def check_same_tokenizer(student: Any, teacher: Any, key: str, path: str) -> None:
    """Scores are per student token: the teacher must give every id the same meaning."""
    if student.get_vocab() != teacher.get_vocab():
        only = len(set(student.get_vocab()) ^ set(teacher.get_vocab()))
        sizes = f"{len(teacher)} and {len(student)} tokens, {only} not shared"
        problem = f"another tokenizer than the student's ({sizes}); distilling across tokenizers is not supported"
        raise ConfigError(key, path, problem, "choose a teacher of the student's model family")
    if student.eos_token_id != teacher.eos_token_id:
        problem = f"ends a response with {teacher.eos_token!r}, the student with {student.eos_token!r}"
        raise ConfigError(key, path, problem, "give both models one eos_token in tokenizer_config.json")


def check_vocabulary(key: str, path: str, config: PretrainedConfig, tokens: int) -> None:
    """More rows than tokens are padding, cut off on every side; fewer rows would be a wrong gather."""
    if config.vocab_size < tokens:
        problem = f"vocab_size {config.vocab_size} is below the tokenizer's {tokens} tokens"
        raise ConfigError(key, path, problem, "use the tokenizer that belongs to this model")


def check_context(
    key: str, path: str, config: PretrainedConfig, longest: int, context: int = 0, generated: bool = False
) -> None:
    """The longest rollout must fit the model's positions, behind the longest privileged context if there is one.

    generated: an inference server must be able to generate one token behind it.
    """
    limit, needed = getattr(config, "max_position_embeddings", None), longest + context + generated
    if limit and needed > limit:
        sizes = "data.max_prompt_length + data.max_response_length" + " + opd.context.max_tokens" * bool(context)
        problem = f"context of {limit} tokens, but {sizes}{' + 1 that vLLM generates' * generated} = {needed}"
        remedy = f"lower data.max_response_length{' or opd.context.max_tokens' * bool(context)} by"
        raise ConfigError(key, path, problem, f"{remedy} {needed - limit}")


def check_k(key: str, k: int, tokens: int) -> None:
    """A support cannot hold more ids than there are."""
    if k > tokens:
        raise ConfigError(key, k, f"the vocabulary has {tokens} tokens", f"{key}={min(16, tokens)}")


def check_plain_head(path: str, config: PretrainedConfig) -> None:
    """The fused path multiplies hidden states by the LM head; models that scale or cap their logits do more."""
    for name in LOGIT_KEYS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            problem = f"its config.{name}={getattr(config, name)} changes the logits behind the fused LM head"
            raise ConfigError(STUDENT, path, problem, "opd.fused=false")


CHECKS = (check_models,)
