"""verl's synchronous trainer with one more step: collect the teacher's scores and make r_t of them."""

from functools import partial
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.debug import marked_timer
from verl.workers.utils.padding import response_to_nested

from opd_verl.config import Support, import_plugins, parse_opd
from opd_verl.engine import STUDENT_TOPK
from opd_verl.fields import ADVANTAGE_FIELDS, collect_scores, reward_inputs, teacher_fields
from opd_verl.hooks import total_reward
from opd_verl.loss import topk_loss
from opd_verl.metrics.step import TeacherOverlap, step_metrics
from opd_verl.teacher.placement import check_placement, free_devices
from opd_verl.teacher.start import TEACHER_POOL, start_teacher


@register_trainer("opd")
class OpdTrainer(PPOTrainerSync):
    """One step: rollout, old log-probs (and the student's top-k), teacher scores, r_t, advantage, actor update."""

    def __init__(self, config: DictConfig) -> None:
        # verl compares the mode with "sync" in several places; by any other name it takes the asynchronous paths.
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"
        self.opd = parse_opd(config)
        import_plugins(self.opd)
        self.prompts_named: dict[int, int] = {}
        super().__init__(config)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        teacher = self.opd.teacher
        check_placement(free_devices(), self.config.trainer, teacher)
        self.resource_pool_manager.resource_pool_spec[TEACHER_POOL] = [teacher.n_gpus_per_node] * teacher.nnodes

    def on_init_end(self) -> None:
        """After verl's own: the teacher loads, and an exact objective replaces the actor's loss."""
        super().on_init_end()
        pool = self.resource_pool_manager.resource_pool_dict[TEACHER_POOL]
        self.teacher = start_teacher(self.opd, pool, vocab_limit=len(self.tokenizer))
        self.overlap = TeacherOverlap()
        if self.opd.objective.support is Support.student_topk:
            actor_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
            self.actor_rollout_wg.set_loss_fn(partial(topk_loss, actor_config))
        self.replay_buffer.poll_interval = self.opd.poll_interval_s

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        first = self.prompts_named.get(self.global_steps, 0)  # verl may ask for more prompts within a step
        self.prompts_named = {self.global_steps: first + len(batch)}
        names = [f"{self.global_steps:06d}.{first + row:05d}" for row in range(len(batch))]
        batch.update(tu.get_tensordict({"uid": names}))
        return batch

    def _balance_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        # Rollouts arrive in the order in which they finished; mini-batches must not depend on that.
        batch.reorder(sorted(range(len(batch)), key=lambda row: batch.keys[row]))
        return super()._balance_batch(batch, *args, **kwargs)

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.extra_info[STUDENT_TOPK] = self.opd.objective.k
        batch = super()._compute_old_log_prob(batch, metrics)
        batch.extra_info[STUDENT_TOPK] = 0  # a reference policy's log-prob pass must not overwrite the student's ids
        with marked_timer("teacher", self.timing_raw):
            scores = collect_scores(batch, self.teacher, self.global_steps, with_topk=self.opd.objective.k > 0)
            self.put(batch, teacher_fields(batch, scores, metrics))
            metrics.update(self.overlap.update(self.teacher.stats()))
        return batch

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=ADVANTAGE_FIELDS)
        lengths = data["response_mask"]
        inputs = reward_inputs(data)
        reward = total_reward(inputs, self.opd.rewards)
        estimator = get_adv_estimator_fn(self.config.algorithm.adv_estimator)
        advantages, returns = estimator(
            token_level_rewards=reward, response_mask=inputs.mask, config=self.config.algorithm
        )
        metrics.update(step_metrics(inputs, reward))
        fields = {"advantages": advantages, "returns": returns, "token_level_rewards": reward}
        return self.put(batch, {name: response_to_nested(value, lengths) for name, value in fields.items()})

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        exact = self.opd.objective.support is Support.student_topk
        batch.extra_info[STUDENT_TOPK] = self.opd.objective.k if exact else 0
        return super()._update_actor(batch, metrics)

    @staticmethod
    def put(batch: Any, fields: dict[str, Any]) -> Any:
        """Writes nested fields of the batch's rows to TransferQueue."""
        record = TensorDict(fields, batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=record)
