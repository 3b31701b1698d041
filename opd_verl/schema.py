"""The map of the data flow: the names of all fields, flags and columns that travel with a rollout.

A *field* lies in TransferQueue, one row for each rollout: P prompt tokens, R response tokens, K ids of a top-k. In a
training step verl's agent-loop workers write the rollout, the teacher's actors score it, verl's log-prob pass reads the
student once more, the advantage step adds the credit, and the actor update reads it all. Log-probs and entropies are in
nats.

verl's own fields that opd_verl reads or writes (verl's names are written out where they are used):

    field                shape, dtype         written by                         read by
    prompts              [P] int64            agent loop                         teacher client, samples
    responses            [R] int64            agent loop                         teacher client, engine, advantage step
    input_ids            [P + R] int64        agent loop                         engine (where response rows begin)
    response_mask        [R] int64            agent loop; teacher scores (0:     everything that averages over tokens
                                              no valid score); advantage step
                                              (`truncated: drop`)
    loss_mask            [R] int64            with response_mask                 verl
    rm_scores            [R] float32          verl's reward loop                 advantage step: task score, correctness
    old_log_probs        [R] float32          log-prob pass                      reward hooks, policy loss
    entropy              [R] float32          log-prob pass (the student's)      reward hooks, masks, metrics
    advantages, returns  [R] float32          advantage step                     policy loss
    token_level_rewards  [R] float32          advantage step (r_t)               verl's metrics
    uid                  [] str               trainer (one for each prompt)      advantage step: groups of GRPO

Our own fields, flags and columns are the constants below.
"""

from dataclasses import dataclass

from opd_verl.objectives.names import Support

# Fields of a rollout that the agent-loop worker writes.

TEACHER_PROMPTS = "teacher_prompts"
"""[P'] int64: token ids of the prompt with its privileged context. Written by the agent-loop worker under
`opd.context.name`, read by the teacher client in place of `prompts`."""
OFF_POLICY = "off_policy"
"""[1] float32: 1 for a response of the data set. Written by the agent-loop worker where `opd.off_policy.share` is
above 0, read by the advantage step."""

# Fields of the teacher's scores, written by `training/teacher_scores.py`.

TEACHER_LOG_PROBS = "teacher_log_probs"
"""[R] float32: log q(y_t); the student's own value where the score is missing. Read by reward hooks and objectives."""
TEACHER_ENTROPY = "teacher_entropy"
"""[R] float32: full-vocabulary entropy of q. Read by the gate, masks and metrics. Absent where several teachers are
averaged and with `teacher=vllm`."""
TEACHER_VALID = "teacher_valid"
"""[R] int64: 1 where the teacher's score is valid. Training does not read it: `response_mask` has it already."""
TEACHER_HIDDEN = "teacher_hidden"
"""[R, G] in the teacher's dtype: its last hidden states, G wide. Read by the actor update of an objective on the whole
vocabulary."""


@dataclass(frozen=True)
class SupportFields:
    """Names of the three fields that describe a support of K ids for each response token."""

    ids: str
    """[R, K] int32: token ids; -1: no id."""
    log_q: str
    """[R, K] float32: the teacher's log-probs at these ids."""
    log_p_old: str
    """[R, K] float32: log-probs of the student that sampled the rollout."""


STUDENT_FIELDS = SupportFields("student_topk_ids", "teacher_log_probs_at_student_topk", "student_topk_log_probs")
"""The student's top-k. Log-prob pass: ids and log_p_old; teacher scores: log_q. Read by the advantage step and the
actor update."""
TEACHER_FIELDS = SupportFields("teacher_topk_ids", "teacher_topk_log_probs", "student_log_probs_at_teacher_topk")
"""The teacher's top-k. Teacher scores: ids and log_q; log-prob pass: log_p_old. Read like the student's top-k."""
JOINT_FIELDS = SupportFields("support_ids", "teacher_log_probs_at_support", "student_log_probs_at_support")
"""A union, intersection or symmetric difference of both. Advantage step: all three fields. Read by the actor update."""

# Fields of the advantage step, read by the actor update.

OPD_WEIGHTS = "opd_weights"
"""[R] float32: weight of each token in distillation; 0: not eligible. Absent: 1 everywhere."""
GATE = "forward_kl_gate"
"""[R] float32: 1 where EOPD's forward KL is added, else 0. Absent without a forward KL."""
OFF_POLICY_TOKENS = "off_policy_tokens"
"""[R] int64: 1 at the tokens of the data set's responses. Absent where the student samples all responses."""

TOKEN_FIELDS = ("old_log_probs", TEACHER_LOG_PROBS, "advantages", TEACHER_ENTROPY)
"""Fields [R] of the sampled token that an objective on a support reads."""
OPTIONAL_FIELDS = (TEACHER_ENTROPY,)
"""Fields of TOKEN_FIELDS that a run may lack."""

# Flags that travel with a batch to verl's workers, as non-tensor data.

STUDENT_TOPK = "opd_student_topk"
"""int: k of the student's top-k in the log-prob pass; 0: none. Trainer -> engine."""
AT_TEACHER_TOPK = "opd_at_teacher_topk"
"""bool: whether the log-prob pass also gives log p at the teacher's top-k ids. Trainer -> engine."""
FUSED_ROWS = "opd_fused_rows"
"""int: rows of logits that exist at one time; 0: a number that suits the device; -1: the plain path. Trainer ->
engine, in the log-prob pass alone: the update's batch is a new one, which lacks it (`training/transfer.py`)."""
OPD_NUM_TOKENS = "opd_num_tokens"
"""int: eligible tokens of the mini-batch over all ranks. Engine -> loss, where OPD_WEIGHTS is there."""

# Tensors that the engine hands to the loss, flat over the N response tokens of a micro-batch.

LOG_P = "log_p"
"""[N] float32: log p(y_t) of the student in training; verl gets it as `log_probs`."""
AGGREGATION_WEIGHTS = "aggregation_weights"
"""[N] float32: weight of each token in the mini-batch's mean."""
OPD_LOSS = "opd_loss"
"""Scalar with gradient: the weighted sum of the exact terms, where the engine formed their gradient itself."""
DIVERGENCE, FORWARD_KL, CROSS_ENTROPY = "divergence", "forward_kl", "cross_entropy"
TERM_NAMES = (DIVERGENCE, FORWARD_KL, CROSS_ENTROPY)
"""[N] float32: value of each exact term; the loss logs them as `actor/opd/<name>`."""

# Names in verl's registries, and columns of files.

MODEL_TYPE = "opd_language_model"
"""`actor_rollout_ref.model.model_type` under which verl finds our engine."""
DATA_RESPONSE = "opd_data_response"
"""The agent loop of a rollout that takes its response from the data set, and the argument that holds the response."""
ROLLOUT_COLUMNS = ("responses", "response_ids", "response_tokens", "finished", "scores", "answers", "model")
"""Columns that a file of rollouts has beside the data set's, n entries per prompt. Written by sampling, read by data,
eval, probe and pipeline. `responses` is also verl's field of a rollout, so the agent-loop worker takes these columns
out of a training sample."""


def support_fields(support: Support) -> SupportFields:
    """The fields that hold the ids of a support of several tokens."""
    return {Support.student_topk: STUDENT_FIELDS, Support.teacher_topk: TEACHER_FIELDS}.get(support, JOINT_FIELDS)
