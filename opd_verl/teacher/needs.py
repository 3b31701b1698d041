"""The teacher values that a run reads under its `opd:` section: number of likely ids, hidden states, entropy."""

from opd_verl.config.opd import OpdConfig, every_teacher
from opd_verl.config.sections import Combine, Engine
from opd_verl.objectives.names import TEACHER_SUPPORTS, Placement, Support
from opd_verl.teacher.settings import due


def teacher_topk(opd: OpdConfig) -> int:
    """The largest teacher top-k that the objective or the extra forward KL reads; 0: no top-k."""
    objective = opd.objective.k if opd.objective.support in TEACHER_SUPPORTS else 0
    forward_kl = opd.forward_kl.k if opd.forward_kl.placement is not Placement.none else 0
    return max(objective, forward_kl)


def student_topk(opd: OpdConfig) -> int:
    """Size of the student's top-k, whose ids the teacher scores after the rollouts; 0: none.

    The objective and reward hooks read these scores. With the teacher's top-k as support nothing reads them, and
    there is no second question.
    """
    return 0 if opd.objective.support is Support.teacher_topk else opd.objective.k


def needs_hidden(opd: OpdConfig) -> bool:
    """Whether the teacher's hidden states travel to the student: the whole vocabulary's q_t is formed there."""
    return opd.objective.support is Support.full


def keeps_hidden(opd: OpdConfig) -> bool:
    """Whether the teacher keeps hidden states after scoring: to score ids named later, or to send the states."""
    return student_topk(opd) > 0 or needs_hidden(opd)


def looks_at_all(opd: OpdConfig) -> bool:
    """Whether the diagnostics look at both top-k in some steps. Only the engine `scorer` can answer them."""
    return opd.diagnostics.enabled and opd.diagnostics.every > 0 and opd.off_policy.share < 1 and gives_entropy(opd)


def looks(opd: OpdConfig, step: int) -> bool:
    """Whether the diagnostics look at both top-k in this step."""
    return looks_at_all(opd) and due(step, opd.diagnostics.every)


def gives_entropy(opd: OpdConfig) -> bool:
    """Whether every score holds the teacher's entropy. Scores of a mixture or of an inference server do not."""
    averaged = bool(opd.teachers) and opd.combine is Combine.average
    return not averaged and all(teacher.engine is Engine.scorer for teacher in every_teacher(opd).values())
