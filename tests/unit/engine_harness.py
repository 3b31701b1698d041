"""Runs the real OpdEngine under FSDP2 over gloo, one process per rank, and its naive float64 reference. No fixtures.

    VERL_PLATFORM=cpu python engine_harness.py MODEL_PATH FOLDER RANK WORLD_SIZE

Every rank runs all of CASES from the same weights; rank 0 writes what they gave to FOLDER/world<WORLD_SIZE>.pt.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

HEAD_ROWS, TOKENIZER_IDS, K, ENTROPY_COEFF = 70, 61, 5, 0.05
TEMPERATURE = {"sampled": 1.0, "topk": 0.7}
ORDER = [5, 0, 7, 2, 4, 1, 6, 3]
LAYOUTS: dict[str, dict[str, Any]] = {
    "micro1": {"micro_batch_size_per_gpu": 1},
    "micro2": {"micro_batch_size_per_gpu": 2},
    "micro4": {"micro_batch_size_per_gpu": 4},
    "dynamic": {"use_dynamic_bsz": True, "max_token_len_per_gpu": 24},
    "packed": {"micro_batch_size_per_gpu": 4, "use_remove_padding": True},
    "shuffled": {"micro_batch_size_per_gpu": 2, "order": ORDER},
    "half_masked": {"micro_batch_size_per_gpu": 2, "half_masked": True},
}
INFER_LAYOUTS = ("micro2", "dynamic", "packed")
Row = dict[str, Tensor]


def make_rows(half_masked: bool = False) -> list[Row]:
    """Eight rollouts; the second half is longer, so that two ranks hold different numbers of tokens."""
    generator = torch.Generator().manual_seed(7)
    rows = []
    for prompt, response in [(3, 1), (2, 4), (5, 2), (1, 3), (4, 9), (2, 7), (6, 8), (3, 6)]:
        ids = torch.randint(TOKENIZER_IDS, (prompt + response,), generator=generator)
        mask = (torch.rand(response, generator=generator) > 0.25).long()
        mask[-1] = 1
        scores = torch.randn(response, TOKENIZER_IDS, generator=generator)
        row = {
            "prompts": ids[:prompt],
            "responses": ids[prompt:],
            "input_ids": ids,
            "position_ids": torch.arange(prompt + response),
            "response_mask": mask * (not (half_masked and len(rows) >= 4)),
            "old_log_probs": -3.5 * torch.rand(response, generator=generator) - 2.5,
            "advantages": torch.randn(response, generator=generator),
            "student_topk_ids": scores.argsort(-1)[:, :K].int(),  # any ids: the update must read them, not find its own
            "teacher_log_probs_at_student_topk": -4 * torch.rand(response, K, generator=generator) - 0.1,
        }
        rows.append(row | {"loss_mask": row["response_mask"]})
    return rows


def next_token_probs(model: Qwen3ForCausalLM, row: Row, temperature: float) -> Tensor:
    """p [L - 1, TOKENIZER_IDS] of every token but the first, from one unpadded forward pass."""
    logits = model(input_ids=row["input_ids"][None]).logits[0, :-1, :TOKENIZER_IDS] / temperature
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def naive_loss(model: Qwen3ForCausalLM, rows: list[Row], objective: str) -> tuple[Tensor, Tensor]:
    """The loss of one mini-batch and its mean top-k reverse KL, token by token, from explicit probabilities."""
    total = divergence = torch.zeros((), dtype=torch.float64)
    for row in rows:
        p = next_token_probs(model, row, TEMPERATURE[objective])[len(row["prompts"]) - 1 :]
        for t, y in enumerate(row["responses"].tolist()):
            if not row["response_mask"][t]:
                continue
            if objective == "sampled":
                ratio, a = p[t, y] / row["old_log_probs"][t].double().exp(), row["advantages"][t].double()
                total = total + torch.maximum(-ratio * a, -ratio.clamp(0.8, 1.3) * a)
                continue
            p_s = p[t, row["student_topk_ids"][t].long()]
            q_s = row["teacher_log_probs_at_student_topk"][t].double().exp()
            p_s, q_s = p_s / p_s.sum(), q_s / q_s.sum()
            divergence = divergence + (p_s * (p_s / q_s).log()).sum()
            total = total + ENTROPY_COEFF * (p[t] * p[t].log()).sum()
    tokens = sum(int(row["response_mask"].sum()) for row in rows)
    return (total + divergence) / tokens, divergence / tokens


def run_world(path: str, folder: Path, world: int) -> dict[str, Any]:
    """Starts `world` ranks, waits for them, and reads what rank 0 wrote."""
    env = os.environ | {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, path, str(folder)]
    ranks = [subprocess.Popen([*command, str(rank), str(world)], env=env) for rank in range(world)]
    try:
        codes = [rank.wait(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0] * world, codes
    return torch.load(folder / f"world{world}.pt")


def build_engine(path: str) -> Any:
    """The engine that `recipe=opd cluster=cpu` builds, with plain SGD, so that weights show the gradient as it is."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    from opd_verl.engine import MODEL_TYPE

    engine = EngineRegistry.new(
        model_type=MODEL_TYPE,
        backend="fsdp2",
        model_config=HFModelConfig(
            path=path,
            model_type=MODEL_TYPE,
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            model_dtype="fp32",
            dtype="float32",
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            use_torch_compile=False,
        ),
        optimizer_config=FSDPOptimizerConfig(
            optimizer="SGD", lr=0.5, weight_decay=0.0, clip_grad=1e9, total_training_steps=10
        ),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


def share(rows: list[Row], **flags: Any) -> Any:
    """This rank's part of the mini-batch, laid out as verl's agent loop and trainer do."""
    from verl.utils import tensordict_utils as tu

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]
    data = tu.list_of_dict_to_tensordict(mine)
    common = {"use_remove_padding": False, "use_dynamic_bsz": False, "calculate_entropy": True, "pad_token_id": 0}
    tu.assign_non_tensor(data, **{**common, "global_batch_size": len(rows), **flags})
    return data


def gathered(value: Any) -> list[Any]:
    """`value` of every rank."""
    found = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def infer(engine: Any, temperature: float, layout: str) -> dict[str, list[Tensor]]:
    """Outputs of the log-prob pass, per sequence of the whole mini-batch."""
    data = share(make_rows(), temperature=temperature, opd_student_topk=K, compute_loss=False, **LAYOUTS[layout])
    with engine.eval_mode():
        output = engine.infer_batch(data)["model_output"]
    ranks = gathered({name: [row.clone() for row in value.unbind()] for name, value in output.items()})
    return {name: [row for rank in ranks for row in rank[name]] for name in output}


def train(engine: Any, objective: str, half_masked: bool = False, order: list[int] | None = None, **layout: Any) -> Any:
    """One update from the first weights: loss, gradient norm, gradients, new weights, metrics; weights are put back."""
    from verl.utils.metric import Metric
    from verl.workers.config import FSDPActorConfig
    from verl.workers.config.actor import PolicyLossConfig
    from verl.workers.utils.losses import ppo_loss

    from opd_verl.loss import topk_loss

    exact = objective == "topk"
    config = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=0.2,
        clip_ratio_high=0.3,
        policy_loss=PolicyLossConfig(loss_mode="opd_none" if exact else "opd"),
        entropy_coeff=ENTROPY_COEFF if exact else 0.0,
    )
    rows = make_rows(half_masked)
    rows = [rows[index] for index in order] if order else rows
    flags = {"temperature": TEMPERATURE[objective], "opd_student_topk": K if exact else 0, **layout}
    first = {name: weight.detach().clone() for name, weight in engine.module.named_parameters()}
    with engine.train_mode():
        output = engine.train_batch(share(rows, **flags), partial(topk_loss if exact else ppo_loss, config))
        weights = dict(engine.module.named_parameters())
        grads = {name: weight.grad.full_tensor().clone() for name, weight in weights.items()}
        updated = {name: weight.detach().full_tensor().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(first[name])
    metrics = {k: v for k, v in output["metrics"].items() if isinstance(v, Metric)}
    ranks = gathered({"loss": sum(output["loss"]), "metrics": metrics})
    return {
        "loss": sum(rank["loss"] for rank in ranks) / len(ranks),
        "grad_norm": output["metrics"]["grad_norm"],
        "grads": grads,
        "weights": updated,
        "metrics": {k: float(Metric.aggregate_dp([rank["metrics"][k] for rank in ranks])) for k in metrics},
    }


def main(path: str, folder: str, rank: int, world: int) -> None:
    """One rank: every case, then the report of rank 0."""
    rendezvous = f"file://{folder}/rendezvous{world}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    engine = build_engine(path)
    found: dict[str, Any] = {
        f"infer-{temperature}-{layout}": infer(engine, temperature, layout)
        for temperature in (1.0, 0.7)
        for layout in INFER_LAYOUTS
    }
    for objective in TEMPERATURE:
        found |= {f"{objective}-{name}": train(engine, objective, **layout) for name, layout in LAYOUTS.items()}
    if rank == 0:
        torch.save(found, f"{folder}/world{world}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
