"""verl's synchronous trainer with prompts named by step and row and batches in that order: a run can be repeated."""

from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu


@register_trainer("seeded")
class SeededTrainer(PPOTrainerSync):
    """`trainer.v1.trainer_mode=seeded`, for use with `opd_verl.seeded_loop.SeededAgentLoopManager`."""

    def __init__(self, config: DictConfig) -> None:
        # verl compares the mode with "sync" in several places; by any other name it takes the asynchronous paths.
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"
        self.prompts_named: dict[int, int] = {}
        super().__init__(config)

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        # verl gives every prompt a random uid. Ours is the same in every run, and seeds are derived from it.
        first = self.prompts_named.get(self.global_steps, 0)  # verl may ask for more prompts within a step
        self.prompts_named = {self.global_steps: first + len(batch)}
        names = [f"{self.global_steps:06d}.{first + row:05d}" for row in range(len(batch))]
        batch.update(tu.get_tensordict({"uid": names}))
        return batch

    def _balance_batch(
        self,
        batch: KVBatchMeta,
        metrics: dict[str, float],
        logging_prefix: str = "global_seqlen",
        keep_minibatch: bool = False,
    ) -> KVBatchMeta:
        # Rollouts arrive in the order in which they finished; mini-batches must not depend on that.
        batch.reorder(sorted(range(len(batch)), key=lambda row: batch.keys[row]))
        return super()._balance_batch(batch, metrics, logging_prefix, keep_minibatch)
