"""Names of all that travels with a rollout: fields of the batch, flags of a worker call, columns of a rollout file."""

from dataclasses import dataclass

from opd_verl.objectives.names import Support

TEACHER_PROMPTS = "teacher_prompts"
"""Field of a rollout in TransferQueue: the token ids int64 [P'] of the prompt that its teacher reads."""
MODEL_TYPE = "opd_language_model"
STUDENT_TOPK = "opd_student_topk"
"""Non-tensor flag of a worker call: k of the student's top-k in the log-prob pass, 0 where nothing reads it."""
AT_TEACHER_TOPK = "opd_at_teacher_topk"
"""Non-tensor flag: whether the log-prob pass also gives log p at the teacher's top-k ids."""
FUSED_ROWS = "opd_fused_rows"
"""Non-tensor flag: rows of logits that exist at one time; 0: what suits the device; -1: the plain path."""
TEACHER_HIDDEN = "teacher_hidden"
OPD_WEIGHTS = "opd_weights"
"""Weight of each response token in distillation, nested [R]; 0: not eligible. Absent: 1 everywhere."""
OPD_NUM_TOKENS = "opd_num_tokens"
"""Non-tensor: eligible tokens of the mini-batch over all ranks; set by the engine where OPD_WEIGHTS is there."""
AGGREGATION_WEIGHTS = "aggregation_weights"
"""Output of the engine for the loss, flat float32 [N]: each response token's weight in the mini-batch's mean."""
OFF_POLICY = "off_policy"
"""Field of a rollout in TransferQueue, [1]: 1 where the response is the data set's; of its tokens for the actor."""
ROLLOUT_COLUMNS = ("responses", "response_ids", "response_tokens", "finished", "scores", "answers", "model")
"""What a file of rollouts adds to the data set's columns; `responses` is also verl's name of what was sampled."""
DATA_RESPONSE = "opd_data_response"
"""Name of the loop in verl's registry, and the argument that holds the response."""


@dataclass(frozen=True)
class SupportFields:
    """Names of the fields, nested over response tokens, that describe a support: [R, K] each."""

    ids: str
    log_q: str
    log_p_old: str


STUDENT_FIELDS = SupportFields("student_topk_ids", "teacher_log_probs_at_student_topk", "student_topk_log_probs")
TEACHER_FIELDS = SupportFields("teacher_topk_ids", "teacher_topk_log_probs", "student_log_probs_at_teacher_topk")
JOINT_FIELDS = SupportFields("support_ids", "teacher_log_probs_at_support", "student_log_probs_at_support")
GATE = "forward_kl_gate"
OFF_POLICY_TOKENS = "off_policy_tokens"
"""1 at the tokens of responses that are the data set's, nested [R]."""
TERM_NAMES = ("divergence", "forward_kl", "cross_entropy")
TOKEN_FIELDS = ("old_log_probs", "teacher_log_probs", "advantages", "teacher_entropy")
OPTIONAL_FIELDS = ("teacher_entropy",)
"""Not there where several teachers are averaged."""


def support_fields(support: Support) -> SupportFields:
    """Where the ids of a support of several tokens are found."""
    return {Support.student_topk: STUDENT_FIELDS, Support.teacher_topk: TEACHER_FIELDS}.get(support, JOINT_FIELDS)
