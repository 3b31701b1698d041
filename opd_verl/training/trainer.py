"""verl's synchronous trainer with one more step: it collects the teacher's scores and turns them into advantages."""

import zlib
from concurrent.futures import Future, ThreadPoolExecutor

from omegaconf import DictConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.utils.debug import marked_timer
from verl.utils.device import get_device_name
from verl.workers.utils.padding import response_to_nested

from opd_verl.config.opd import every_teacher, import_plugins, parse_opd, routed_by
from opd_verl.contexts import CONTEXT_HOOKS, chat_template, teacher_prompt
from opd_verl.metrics.live import own_rollouts
from opd_verl.metrics.step import TeacherTotals
from opd_verl.schema import AT_TEACHER_TOPK, FUSED_ROWS, OFF_POLICY, OPD_WEIGHTS, STUDENT_TOPK, TEACHER_PROMPTS
from opd_verl.teacher.client.several import RoutedTeachers, Teacher, routes
from opd_verl.teacher.client.start import pool_name, start_teachers
from opd_verl.teacher.needs import gives_entropy, looks, needs_hidden, student_topk, teacher_topk
from opd_verl.teacher.placement import check_placement, free_devices
from opd_verl.teacher.score import TeacherScore
from opd_verl.teacher.snapshot import TeacherSync, pointer_file
from opd_verl.tracking.samples.show import SampleRollouts, Scored
from opd_verl.tracking.stderr import log_to_stderr
from opd_verl.training.advantage_inputs import (
    ADVANTAGE_FIELDS,
    end_ids,
    joint_support,
    observed,
    reward_inputs,
    task_rewards,
    teacher_top,
)
from opd_verl.training.advantage_step import TaskRewards, credit
from opd_verl.training.diagnostics import Diagnostics
from opd_verl.training.rollout.off_policy import check_responses
from opd_verl.training.seeded_trainer import SeededTrainer
from opd_verl.training.teacher_scores import collect_scores, merge, teacher_fields, teacher_topk_fields
from opd_verl.training.transfer import as_fields, read_rows, set_flags, write_fields
from opd_verl.training.update.make_loss import make_loss


@register_trainer("opd")
class OpdTrainer(SeededTrainer):
    """One step: rollout, old log-probs (and the student's top-k), teacher scores, r_t, advantage, actor update."""

    def __init__(self, config: DictConfig) -> None:
        log_to_stderr()
        self.opd = parse_opd(config)
        import_plugins(self.opd)
        super().__init__(config)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        teachers = {name: teacher for name, teacher in every_teacher(self.opd).items() if not teacher.colocate}
        check_placement(free_devices(), self.config.trainer, teachers)
        for name, teacher in teachers.items():
            devices = [teacher.n_gpus_per_node] * teacher.nnodes
            self.resource_pool_manager.resource_pool_spec[pool_name(name)] = devices
        self.loading: Future[Teacher] | None = None
        create = self.resource_pool_manager.create_resource_pool

        def create_and_load() -> None:
            create()
            self.begin_loading()

        # verl calls this once, before it starts its workers: the first moment at which our pools exist.
        self.resource_pool_manager.create_resource_pool = create_and_load

    def begin_loading(self) -> None:
        """Starts to load teachers that have devices of their own, while verl starts its workers and servers."""
        if self.opd.teacher.sync_every or any(teacher.colocate for teacher in every_teacher(self.opd).values()):
            return
        for pool in self.resource_pool_manager.resource_pool_dict.values():
            # The trainer's pool comes first in this dict: a small teacher must not take its node.
            pool.get_placement_groups(device_name=get_device_name())
        self.loading = ThreadPoolExecutor(1).submit(self.load_teachers)

    def load_teachers(self) -> Teacher:
        """Starts all teachers; a teacher that follows the student loads the weights that `TeacherSync` points to."""
        pointer = pointer_file(self.config.trainer.default_local_dir) if self.opd.teacher.sync_every else None
        pools = self.resource_pool_manager.resource_pool_dict
        return start_teachers(self.config, self.opd, pools, len(self.tokenizer), pointer)

    def on_init_end(self) -> None:
        """verl's hook after its own initialisation: waits for the teacher, and gives the actor its loss."""
        super().on_init_end()
        every, folder = self.opd.teacher.sync_every, self.config.trainer.default_local_dir
        self.sync = TeacherSync(every, folder, self.actor_rollout_wg) if every else None
        if self.sync is not None:
            self.sync.resume(self.global_steps)
        self.teacher = self.load_teachers() if self.loading is None else self.loading.result()
        self.teacher_totals = TeacherTotals()
        self.actor_rollout_wg.set_loss_fn(make_loss(self.config.actor_rollout_ref.actor, self.opd))
        self.replay_buffer.poll_interval = self.opd.poll_interval_s
        model = self.config.actor_rollout_ref.model
        self.diagnostics = Diagnostics(self.opd, self.config, self.global_steps)
        self.samples = SampleRollouts(self.opd.samples, self.config, self.tokenizer)
        self.end_ids = end_ids(model.path, self.tokenizer, model.trust_remote_code)

    def step(self, metrics: dict[str, float], timing_raw: dict[str, float]) -> KVBatchMeta:
        """Runs verl's step. After every `opd.teacher.sync_every`-th step the teacher takes the student's weights."""
        batch = super().step(metrics, timing_raw)
        if self.sync is not None:
            with marked_timer("teacher_sync", timing_raw):
                self.sync.after(self.global_steps, self.teacher)
        return batch

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        self.check_contexts(batch)
        if self.opd.off_policy.share:
            check_responses(batch, self.opd.off_policy.field)
        if isinstance(self.teacher, RoutedTeachers):
            for route in routes(batch, self.teacher.field):
                self.teacher.name_of(route)  # an error here ends the run; verl only logs an agent loop's errors
        return batch

    def check_contexts(self, batch: TensorDict) -> None:
        """Tries every prompt's privileged context. An error here ends the run; verl only logs an agent loop's error."""
        if self.opd.context.name is None:
            return
        columns = {name: column.tolist() for name, column in batch.items()}
        render = chat_template(self.tokenizer, self.config.data.get("apply_chat_template_kwargs"))
        for row in range(len(batch)):
            sample = {name: column[row] for name, column in columns.items()}
            messages = list(sample["raw_prompt"])
            context = CONTEXT_HOOKS[self.opd.context.name](sample)
            teacher_prompt(messages, context, render, render(messages), self.opd.context.max_tokens)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, float]) -> KVBatchMeta:
        look = self.opd.diagnostics.k if looks(self.opd, self.global_steps) else 0
        topk, own_topk, hidden = teacher_topk(self.opd) or look, student_topk(self.opd) or look, needs_hidden(self.opd)
        at_student_topk, scores = own_topk > 0, None
        if topk:  # before the log-prob pass, which reads the student at the teacher's ids
            scores = self.collect(batch, topk=topk, hidden=hidden)
            write_fields(batch, teacher_topk_fields(batch, scores))
        fused_rows = (self.opd.fused_rows or 0) if self.opd.fused else -1
        set_flags(batch, **{STUDENT_TOPK: own_topk, AT_TEACHER_TOPK: topk > 0, FUSED_ROWS: fused_rows})
        batch = super()._compute_old_log_prob(batch, metrics)
        # A reference policy's log-prob pass comes next and must not overwrite the student's ids.
        set_flags(batch, **{STUDENT_TOPK: 0, AT_TEACHER_TOPK: False})
        if scores is None:
            scores = self.collect(batch, at_student_topk=at_student_topk, hidden=hidden)
        elif at_student_topk:
            scores = merge(scores, self.collect(batch, at_student_topk=True))
        fields, missing = teacher_fields(batch, scores, self.opd.teacher.max_missing_share)
        write_fields(batch, fields)
        metrics.update(missing | self.teacher_totals.update(self.teacher.stats()))
        return batch

    def collect(
        self, batch: KVBatchMeta, topk: int = 0, at_student_topk: bool = False, hidden: bool = False
    ) -> list[TeacherScore]:
        """The teacher's scores of the batch; the wait for them is timed as `timing_s/teacher`."""
        with marked_timer("teacher", self.timing_raw):
            return collect_scores(
                batch,
                self.teacher,
                self.global_steps,
                topk=topk,
                at_student_topk=at_student_topk,
                hidden=hidden,
                entropy=gives_entropy(self.opd),
                prompts_field=TEACHER_PROMPTS if self.opd.context.name else "prompts",
                route_field=routed_by(self.opd),
            )

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, float]) -> KVBatchMeta:
        rows = read_rows(batch, [*ADVANTAGE_FIELDS, OFF_POLICY, "uid"])
        uids = rows.pop("uid").tolist()
        data = as_fields(rows)
        inputs = reward_inputs(data, self.opd.tokens, self.config.data.max_response_length, self.end_ids)
        # The seed depends only on the config and the step, so a resumed run draws the same gates as the first run.
        seed = zlib.crc32(f"{self.config.actor_rollout_ref.rollout.seed}/{self.global_steps}".encode())
        step_credit = credit(inputs, TaskRewards(batch.keys, uids, task_rewards(data)), self.opd, self.config, seed)
        metrics.update(step_credit.metrics)
        if self.opd.diagnostics.enabled:
            metrics.update(self.diagnostics.update(own_rollouts(observed(data, inputs), inputs.off_policy), metrics))
        reward, weights = step_credit.fields["token_level_rewards"], step_credit.fields.get(OPD_WEIGHTS)
        scored = Scored(batch, data["responses"], inputs, reward, weights, teacher_top(data))
        self.samples.show(scored, self.global_steps, self.logger)
        fields = {name: response_to_nested(value, data["response_mask"]) for name, value in step_credit.fields.items()}
        joint, support_size = joint_support(data, self.opd.objective.support, self.opd.objective.k)
        metrics.update(support_size)
        return write_fields(batch, fields | joint)
