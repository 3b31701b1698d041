"""Checks of responses that are not the student's own (`opd.off_policy`)."""

from omegaconf import DictConfig
from pyarrow.parquet import read_schema

from opd_verl.checks.several_teachers import parquet_files
from opd_verl.config.errors import ConfigError
from opd_verl.config.opd import OpdConfig, is_exact
from opd_verl.objectives.names import Support


def check_off_policy(config: DictConfig, opd: OpdConfig) -> None:
    """Responses of the data set need an exact objective.

    A policy gradient on r_t is the gradient of the reverse KL only at tokens that the student sampled.
    """
    key, share = "opd.off_policy.share", opd.off_policy.share
    if not share:
        return
    if not is_exact(opd):
        problem = "r_t at tokens that the student did not sample is no policy gradient; it needs an exact objective"
        raise ConfigError(key, share, problem, "recipe=gkd, recipe=kd, or opd.objective.support=student_topk")
    if opd.mix.task:
        problem = f"the task reward (opd.mix.task={opd.mix.task}) would reward responses that are not the student's"
        raise ConfigError(key, share, problem, "opd.mix.task=0")
    if config.actor_rollout_ref.rollout.calculate_log_probs:
        problem = "the rollout's log-probs are asked for, and the data set's responses have none"
        raise ConfigError(key, share, problem, "actor_rollout_ref.rollout.calculate_log_probs=false")


def check_column(config: DictConfig, opd: OpdConfig) -> None:
    """The training files that can be read here hold a column of responses."""
    if not opd.off_policy.share:
        return
    for file in parquet_files(config):
        if (field := opd.off_policy.field) not in (names := read_schema(file).names):
            problem = f"{file} has no such column (there are: {', '.join(sorted(names))})"
            remedy = "make it with `python -m opd_verl.data rollouts`, or name another column"
            raise ConfigError("opd.off_policy.field", field, problem, remedy)


def check_cross_entropy(config: DictConfig, opd: OpdConfig) -> None:
    """The cross-entropy needs responses of the data set, and an objective that reads columns of the vocabulary."""
    key, value = "opd.off_policy.cross_entropy", opd.off_policy.cross_entropy
    if value and not opd.off_policy.share:
        raise ConfigError(key, value, "there are no responses of the data set to read", "opd.off_policy.share=1.0")
    if value and opd.objective.support is Support.full:
        problem = "support=full reads the whole vocabulary; the two are not combined"
        raise ConfigError(key, value, problem, "opd.objective.support=teacher_topk")


CHECKS = (check_off_policy, check_cross_entropy, check_column)
