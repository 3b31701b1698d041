"""The sizes and counts that the planner reads from a composed config. Imports no verl."""

from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig

from opd_verl.config.opd import OpdConfig, context_tokens, every_teacher
from opd_verl.config.sections import Engine, TeacherConfig
from opd_verl.fused.rows import CPU_BLOCK, CPU_ROWS, DEVICE_BLOCK, DEVICE_ROWS
from opd_verl.teacher.needs import keeps_hidden, looks_at_all, needs_hidden, student_topk, teacher_topk
from opd_verl.teacher.scoring import scorer as teacher_rows

BYTES = {"float32": 4, "fp32": 4, "bfloat16": 2, "bf16": 2, "float16": 2, "fp16": 2, "half": 2, "auto": 2}
"""Bytes of a number, by the names of dtypes in verl's config and ours. `auto` (the checkpoint's) counts as bf16."""


@dataclass(frozen=True)
class TrainerLayout:
    """The student's side: devices, sharding, and the batch of a step."""

    nnodes: int
    devices_per_node: int
    shards: int
    """Devices that a full copy of the training state is spread over."""
    state_bytes: int
    """Bytes per weight under FSDP: parameter, gradient, and each Adam moment."""
    compute_bytes: int
    """Bytes of a parameter or activation while a layer runs."""
    checkpointing: bool
    """Whether activations are computed again in the backward pass."""
    offload_params: bool
    offload_optimizer: bool
    reference: bool
    """Whether a reference policy's weights lie beside the student's."""
    fused: bool
    """Whether the LM head runs in chunks of rows: no logits [tokens, vocabulary]."""
    head_rows: int
    """Rows of one chunk's logits."""
    head_block: int
    """Rows of one float32 block within a chunk."""
    micro_tokens: int
    """Token budget of a forward pass on a rank."""
    rollouts: int
    """Rollouts of a step."""
    mini_rollouts: int
    """Rollouts of an optimizer step."""
    prompt_tokens: int
    response_tokens: int

    @property
    def devices(self) -> int:
        """Number of the trainer's ranks."""
        return self.nnodes * self.devices_per_node

    @property
    def longest(self) -> int:
        """Tokens of a sequence."""
        return self.prompt_tokens + self.response_tokens

    @property
    def update_tokens(self) -> int:
        """Tokens of a forward and backward pass: the budget, or a rank's share of a mini-batch if that is less."""
        return min(self.micro_tokens, -(-self.mini_rollouts // self.devices) * self.longest)

    @property
    def log_prob_tokens(self) -> int:
        """Tokens of a forward pass for old log-probs: the budget, or a rank's share of a step if that is less."""
        return min(self.micro_tokens, -(-self.rollouts // self.devices) * self.longest)

    @property
    def updates(self) -> int:
        """Optimizer steps in a training step."""
        return max(-(-self.rollouts // self.mini_rollouts), 1)


@dataclass(frozen=True)
class RolloutLayout:
    """The rollout servers on the trainer's devices."""

    engines: int
    """Number of servers."""
    tensor_parallel: int
    """Devices of one server."""
    memory_share: float
    """Share of a device's memory that a server takes while it generates."""
    weight_bytes: int
    """Bytes of a weight."""
    sleeps: bool
    """Whether a server frees weights and KV cache while the trainer trains."""


@dataclass(frozen=True)
class TeacherLayout:
    """One teacher's replicas, and the values in a token's answer."""

    path: str
    replicas: int
    shards: int
    colocated: bool
    served: bool
    """Whether vLLM runs the teacher instead of our scorer."""
    weight_bytes: int
    batch_tokens: int
    """Token budget of a forward pass on a device."""
    head_rows: int
    state_gib: float
    """Limit of kept hidden states; 0 where nothing reads them."""
    context_tokens: int
    topk: int
    at_ids: int
    log_prob_bytes: int
    hidden: bool

    @property
    def devices(self) -> int:
        """Devices that only this teacher uses; 0 for a colocated teacher."""
        return 0 if self.colocated else self.replicas * self.shards


def trainer_layout(config: DictConfig, opd: OpdConfig | None, response_tokens: int | None) -> TrainerLayout:
    """The student's side of a config.

    response_tokens: mean length of a response; None: every response has data.max_response_length.
    """
    actor, rollout, trainer = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.trainer
    fsdp, devices = actor.fsdp_config, trainer.nnodes * trainer.n_gpus_per_node
    mixed = fsdp.get("mixed_precision") or {}
    size = BYTES[mixed.get("param_dtype") or fsdp.dtype]
    rows, block = (CPU_ROWS[size], CPU_BLOCK) if trainer.device == "cpu" else (DEVICE_ROWS, DEVICE_BLOCK)
    return TrainerLayout(
        nnodes=trainer.nnodes,
        devices_per_node=trainer.n_gpus_per_node,
        shards=fsdp.fsdp_size if 0 < fsdp.fsdp_size < devices else devices,
        state_bytes=BYTES[fsdp.model_dtype],
        compute_bytes=size,
        checkpointing=config.actor_rollout_ref.model.enable_gradient_checkpointing,
        offload_params=fsdp.param_offload,
        offload_optimizer=fsdp.optimizer_offload,
        reference=actor.use_kl_loss or config.algorithm.use_kl_in_reward,
        fused=opd is not None and opd.fused,
        head_rows=(opd and opd.fused_rows) or rows,
        head_block=block,
        micro_tokens=micro_tokens(actor, config.data),
        rollouts=config.data.train_batch_size * rollout.n,
        mini_rollouts=actor.ppo_mini_batch_size * rollout.n,
        prompt_tokens=config.data.max_prompt_length,
        response_tokens=response_tokens or config.data.max_response_length,
    )


def micro_tokens(actor: DictConfig, data: DictConfig) -> int:
    """Tokens of one forward pass on a rank: the dynamic budget, or the fixed micro-batch's rows at full length."""
    if actor.use_dynamic_bsz:
        return actor.ppo_max_token_len_per_gpu
    return (actor.ppo_micro_batch_size_per_gpu or 1) * (data.max_prompt_length + data.max_response_length)


def rollout_layout(config: DictConfig) -> RolloutLayout:
    """verl's servers: one for each `tensor_model_parallel_size` devices of the trainer."""
    rollout, trainer = config.actor_rollout_ref.rollout, config.trainer
    parallel = rollout.tensor_model_parallel_size
    return RolloutLayout(
        engines=max(trainer.nnodes * trainer.n_gpus_per_node // parallel, 1),
        tensor_parallel=parallel,
        memory_share=rollout.gpu_memory_utilization,
        weight_bytes=BYTES[rollout.dtype],
        sleeps=rollout.free_cache_engine,
    )


def teacher_layouts(config: DictConfig, opd: OpdConfig | None) -> Mapping[str, TeacherLayout]:
    """Every teacher's layout by name; empty without an `opd:` section."""
    if opd is None:
        return {}
    rows = teacher_rows.CPU_ROWS if config.trainer.device == "cpu" else teacher_rows.DEVICE_ROWS
    return {name: teacher_layout(opd, teacher, rows) for name, teacher in every_teacher(opd).items()}


def teacher_layout(opd: OpdConfig, teacher: TeacherConfig, rows: int) -> TeacherLayout:
    """One teacher's layout. `rows`: rows of logits at one time where `chunk_rows` is not set."""
    keeps = (keeps_hidden(opd) or looks_at_all(opd)) and teacher.engine is Engine.scorer
    return TeacherLayout(
        path=teacher.path or "",
        replicas=teacher.nnodes * teacher.n_gpus_per_node // teacher.shards,
        shards=teacher.shards,
        colocated=teacher.colocate,
        served=teacher.engine is Engine.vllm,
        weight_bytes=BYTES[teacher.dtype],
        batch_tokens=teacher.max_tokens_per_batch,
        head_rows=teacher.chunk_rows or rows,
        state_gib=teacher.max_state_gib if keeps else 0.0,
        context_tokens=context_tokens(opd),
        topk=teacher_topk(opd),
        at_ids=student_topk(opd),
        log_prob_bytes=BYTES[teacher.wire_dtype],
        hidden=needs_hidden(opd),
    )
