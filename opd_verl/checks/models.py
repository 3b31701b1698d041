"""Checks that read the models' config files and tokenizers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from opd_verl.checks import accepted
from opd_verl.checks.scorable import ScoringPair, SettingNames, check_length, check_vocabulary, scoring_checks
from opd_verl.checks.template import OPTIONS, check_options, template_difference, template_options
from opd_verl.config.errors import ConfigError, first_line
from opd_verl.config.opd import OpdConfig, context_tokens, every_teacher, teacher_key
from opd_verl.config.sections import Engine, TeacherConfig
from opd_verl.fused.head import LOGIT_KEYS
from opd_verl.objectives.names import Placement
from opd_verl.teacher.needs import looks_at_all
from opd_verl.utils.hub import looks_local, why_unloadable

STUDENT = "actor_rollout_ref.model.path"
LONGEST = "data.max_prompt_length + data.max_response_length"
SHORTEN = "data.max_response_length"
TERMINAL = 120
"""Characters of a library's message: one line of a terminal."""


@dataclass(frozen=True)
class StudentPrompts:
    """The student's prompts and responses, as far as a teacher must be able to read them."""

    tokenizer: PreTrainedTokenizerBase
    longest: int
    """Tokens of the longest prompt and response."""
    context: int
    """The most tokens that a privileged context adds to the teacher's prompt; 0: there is no context."""
    options: Mapping[str, object]
    """Options of the chat template."""


def check_models(config: DictConfig, opd: OpdConfig) -> list[str]:
    """Student and teachers exist, share a tokenizer, cover its ids, and the longest rollout fits all of them.

    Returns `accepted.line` of each teacher.
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
    check_length(STUDENT, model.path, student_config, longest, LONGEST, SHORTEN)
    prompts = StudentPrompts(tokenizer, longest, context_tokens(opd), options)
    teachers = every_teacher(opd).items()
    lines = [check_teacher_model(teacher_key(name), teacher, prompts) for name, teacher in teachers]
    check_k("opd.objective.k", opd.objective.k, len(tokenizer))
    if looks_at_all(opd):
        check_k("opd.diagnostics.k", opd.diagnostics.k, len(tokenizer))
    if opd.forward_kl.placement is not Placement.none:
        check_k("opd.forward_kl.k", opd.forward_kl.k, len(tokenizer))
    if opd.fused:
        check_plain_head(model.path, student_config)
    return lines


def check_teacher_model(section: str, teacher: TeacherConfig, prompts: StudentPrompts) -> str:
    """A teacher exists, can score the student's longest rollout, and fits a device. Returns `accepted.line`."""
    key = f"{section}.path"
    config = load_config(key, teacher.path, teacher.trust_remote_code)
    tokenizer_path = teacher.tokenizer_path or teacher.path
    tokenizer = load_tokenizer(key, tokenizer_path, teacher.trust_remote_code)
    student, options = prompts.tokenizer, prompts.options
    # An inference server scores a prompt only together with at least one token that it generates behind it.
    generated = teacher.engine is Engine.vllm
    longest = prompts.longest + prompts.context + generated
    pair = ScoringPair(student, tokenizer, teacher.path, tokenizer_path, config, longest, options)
    checks = scoring_checks(pair, training_names(section, prompts.context > 0, generated))
    if not teacher.same_template and (parts := template_difference(student, tokenizer, options)):
        checks["chat template"] = lambda: f"prompts that read {parts}"
    remarks = [remark for check in checks.values() if (remark := check()) is not None]
    needed = accepted.weight_bytes(teacher, config)
    accepted.check_memory(section, teacher, needed)
    line = accepted.line(section, teacher, config, needed, student, tokenizer, prompts.longest + prompts.context)
    return "; ".join([line, *remarks])


def training_names(section: str, with_context: bool, generated: bool) -> SettingNames:
    """The names of a training run's settings, for messages about the teacher of this section."""
    return SettingNames(
        teacher=f"{section}.path",
        longest=LONGEST + " + opd.context.max_tokens" * with_context + " + 1 that vLLM generates" * generated,
        shorten=SHORTEN + " or opd.context.max_tokens" * with_context,
        template_options=OPTIONS,
        same_template=f"{section}.same_template",
    )


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

    `~` is not expanded: neither verl nor transformers does it.
    """
    if path and Path(path).is_dir():
        return
    remedy = f"{key}=/path/to/model, or a hub name like owner/name"
    if path is None or looks_local(path):
        raise ConfigError(key, path, "no such model folder", remedy)
    if problem := why_unloadable(path):
        raise ConfigError(key, path, f"no such folder, {problem}", remedy)


def check_k(key: str, k: int, tokens: int) -> None:
    """A top-k cannot hold more ids than the vocabulary has."""
    if k > tokens:
        raise ConfigError(key, k, f"the vocabulary has {tokens} tokens", f"{key}={min(16, tokens)}")


def check_plain_head(path: str, config: PretrainedConfig) -> None:
    """The fused path only multiplies hidden states by the LM head: it refuses models that scale or cap their logits."""
    for name in LOGIT_KEYS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            problem = f"its config.{name}={getattr(config, name)} changes the logits behind the fused LM head"
            raise ConfigError(STUDENT, path, problem, "opd.fused=false")


CHECKS = (check_models,)
