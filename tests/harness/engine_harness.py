"""Runs the real OpdEngine under FSDP2 over gloo, one process per rank, and its naive float64 reference. No fixtures.

    VERL_PLATFORM=cpu python engine_harness.py MODEL_PATH FOLDER

One process imports verl once (about 8 CPU seconds) and forks the ranks of each of WORLDS. Every rank runs the world's
cases from the same weights; rank 0 writes the results to FOLDER/world<WORLD_SIZE>.pt.
"""

import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from objectives_reference import reference_divergence, reference_full, reference_policy_gradient
from torch import Tensor
from transformers import Qwen3ForCausalLM

from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import ForwardKLConfig, ObjectiveConfig
from opd_verl.objectives.names import Divergence, Placement, Support, Tail, Weighting

HEAD_ROWS, TOKENIZER_IDS, K, FORWARD_K, TEACHER_WIDTH, BETA = 70, 61, 5, 3, 4, 0.3
EPS_LOW, EPS_HIGH, ENTROPY_COEFF = 0.2, 0.3, 0.05
FUSED_ROWS = 5
"""Several chunks in every micro-batch, the last one not full."""


@dataclass(frozen=True)
class Case:
    """An objective and how it is run."""

    opd: OpdConfig
    temperature: float = 1.0
    entropy_coeff: float = 0.0
    policy: bool = False
    """Whether verl's policy loss takes part."""
    weighted: bool = False
    """Whether tokens carry weights, some of them 0."""


def exact(support: str, divergence: str = "reverse", tail: str = "renorm", **more: Any) -> OpdConfig:
    """`opd:` with an exact divergence on a support."""
    return OpdConfig(
        objective=ObjectiveConfig(
            support=Support(support), k=K, divergence=Divergence(divergence), tail=Tail(tail), beta=BETA, **more
        )
    )


EOPD = OpdConfig(forward_kl=ForwardKLConfig(placement=Placement.gated, k=FORWARD_K, coefficient=0.5))
CASES: dict[str, Case] = {
    "sampled": Case(OpdConfig(), policy=True),
    "sampled_weighted": Case(OpdConfig(), policy=True, weighted=True, entropy_coeff=ENTROPY_COEFF),
    "topk": Case(exact("student_topk"), temperature=0.7),
    "topk_entropy": Case(exact("student_topk"), temperature=0.7, entropy_coeff=ENTROPY_COEFF),
    "topk_weighted": Case(exact("teacher_topk", "forward", "bucket"), weighted=True, entropy_coeff=ENTROPY_COEFF),
    "union": Case(exact("union", "jsd", "generalised")),
    "difference": Case(exact("symmetric_difference", "reverse", "none"), temperature=0.7),
    "compat": Case(exact("intersection", paper_compat=True, paper_compat_weights=Weighting.student)),
    "eopd": Case(EOPD, policy=True, temperature=0.7),
    "full": Case(exact("full"), temperature=0.7),
    "full_jsd_policy": Case(exact("full", "jsd"), policy=True, weighted=True),
}
PLAIN = ("sampled", "topk_entropy", "topk_weighted", "union", "compat", "eopd", "full")
"""Cases that also run on the plain path."""
ORDER = [5, 0, 7, 2, 4, 1, 6, 3]
LAYOUTS: dict[str, dict[str, Any]] = {
    "micro1": {"micro_batch_size_per_gpu": 1},
    "micro4": {"micro_batch_size_per_gpu": 4},
    "dynamic": {"use_dynamic_bsz": True, "max_token_len_per_gpu": 24},
    "packed": {"micro_batch_size_per_gpu": 4, "use_remove_padding": True},
    "shuffled": {"micro_batch_size_per_gpu": 2, "order": ORDER},
    "half_masked": {"micro_batch_size_per_gpu": 2, "half_masked": True},
}
INFER_LAYOUTS = ("micro4", "dynamic", "packed")
HYBRID = 4
"""Ranks of the world that holds two copies of the model, each over two ranks (cluster=4x8 in small)."""
WORLDS = {1: -1, 2: -1, HYBRID: 2}
"""World sizes, each with verl's fsdp_size: -1 is one copy of the model over all ranks."""
HYBRID_CASES = [("sampled_weighted", True), ("topk_entropy", False), ("topk_weighted", True), ("full_jsd_policy", True)]
"""Every kind of term, on both paths: the copies of a model differ in the mean of gradients, which no objective sees."""
Row = dict[str, Tensor]


def paths() -> list[tuple[str, bool]]:
    """(case, fused) of everything that is run."""
    return [(name, True) for name in CASES] + [(name, False) for name in PLAIN]


def teacher_weight() -> Tensor:
    """The teacher's LM head [TOKENIZER_IDS, TEACHER_WIDTH]."""
    return torch.randn(TOKENIZER_IDS, TEACHER_WIDTH, generator=torch.Generator().manual_seed(3))


def joint_support(row: Row) -> Row:
    """The fields of union and symmetric difference, and of the intersection, by the definition, id by id."""
    actual: dict[str, list[list[float]]] = {"ids": [], "q": [], "old": []}
    for t in range(len(row["responses"])):
        q = teacher_probs(row)[t]
        ids = support_ids(row, t, Support(row["kind"]))
        width = 2 * K
        actual["ids"].append(ids + [-1] * (width - len(ids)))
        actual["q"].append([q[i].log().item() for i in ids] + [-3.0] * (width - len(ids)))
        actual["old"].append([row["p_old"][t, i].log().item() for i in ids] + [-4.0] * (width - len(ids)))
    return {
        "support_ids": torch.tensor(actual["ids"], dtype=torch.int32),
        "teacher_log_probs_at_support": torch.tensor(actual["q"]),
        "student_log_probs_at_support": torch.tensor(actual["old"]),
    }


def support_ids(row: Row, t: int, support: Support) -> list[int]:
    """S_t by its definition."""
    student, teacher = (row[name][t].tolist() for name in ("student_topk_ids", "teacher_topk_ids"))
    every = range(TOKENIZER_IDS)
    return {
        Support.student_topk: student,
        Support.teacher_topk: teacher,
        Support.union: [i for i in every if i in student or i in teacher],
        Support.intersection: [i for i in every if i in student and i in teacher],
        Support.symmetric_difference: [i for i in every if (i in student) != (i in teacher)],
    }[support]


def teacher_probs(row: Row) -> Tensor:
    """q [R, TOKENIZER_IDS] in float64, from hidden states and head."""
    return (row["teacher_hidden"].double() @ teacher_weight().double().T).softmax(-1)


def make_rows(half_masked: bool = False, kind: str = "union") -> list[Row]:
    """Eight rollouts; the second half is longer, so that two ranks hold different numbers of tokens."""
    generator = torch.Generator().manual_seed(7)
    rows = []
    for prompt, response in [(3, 1), (2, 4), (5, 2), (1, 3), (4, 9), (2, 7), (6, 8), (3, 6)]:
        ids = torch.randint(
            2, TOKENIZER_IDS, (prompt + response,), generator=generator
        )  # 1 pads: its row is not trained
        mask = (torch.rand(response, generator=generator) > 0.25).long()
        mask[-1] = 1
        p_old = torch.randn(response, TOKENIZER_IDS, generator=generator).softmax(-1)
        weights = torch.rand(response, generator=generator) + 0.5
        row = {
            "prompts": ids[:prompt],
            "responses": ids[prompt:],
            "input_ids": ids,
            "position_ids": torch.arange(prompt + response),
            "response_mask": mask * (not (half_masked and len(rows) >= 4)),
            "old_log_probs": -3.5 * torch.rand(response, generator=generator) - 2.5,
            "advantages": torch.randn(response, generator=generator),
            "student_topk_ids": p_old.argsort(-1)[:, :K].int(),  # any ids: the update must read them, not find its own
            "teacher_hidden": torch.randn(response, TEACHER_WIDTH, generator=generator),
            "forward_kl_gate": (torch.rand(response, generator=generator) > 0.5).float(),
            "opd_weights": weights * (torch.rand(response, generator=generator) > 0.3),
            "p_old": p_old,
            "kind": kind if kind in ("intersection", "symmetric_difference") else "union",
        }
        q = teacher_probs(row)
        at_student, top = q.gather(-1, row["student_topk_ids"].long()), q.topk(K, dim=-1)
        row |= {
            "teacher_log_probs": q.gather(-1, ids[prompt:, None])[:, 0].log().float(),
            "teacher_entropy": -(q * q.log()).sum(-1).float(),
            "teacher_log_probs_at_student_topk": at_student.log().float(),
            "student_topk_log_probs": p_old.gather(-1, row["student_topk_ids"].long()).log(),
            "teacher_topk_ids": top.indices.int(),
            "teacher_topk_log_probs": top.values.log().float(),
            "student_log_probs_at_teacher_topk": p_old.gather(-1, top.indices).log(),
            "loss_mask": row["response_mask"],
        }
        rows.append(row | joint_support(row))
    return rows


def next_token_probs(model: Qwen3ForCausalLM, row: Row, temperature: float) -> Tensor:
    """p [L - 1, TOKENIZER_IDS] of every token but the first, from one unpadded forward pass."""
    logits = model(input_ids=row["input_ids"][None]).logits[0, :-1, :TOKENIZER_IDS] / temperature
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def naive_policy(p_y: Tensor, row: Row, t: int) -> Tensor:
    """The clipped surrogate of one token."""
    ratio, a = p_y / row["old_log_probs"][t].double().exp(), row["advantages"][t].double()
    return torch.maximum(-ratio * a, -ratio.clamp(1 - EPS_LOW, 1 + EPS_HIGH) * a)


def naive_exact(p: Tensor, row: Row, t: int, case: Case) -> Tensor:
    """The exact terms of one token from full distributions; p [TOKENIZER_IDS]."""
    q, objective, total = teacher_probs(row)[t], case.opd.objective, torch.zeros((), dtype=torch.float64)
    if objective.support is Support.full:
        total = total + reference_full(p, q, objective.divergence, BETA)
    elif objective.support is not Support.sampled:
        ids = support_ids(row, t, objective.support)
        if objective.paper_compat:
            args = (objective.paper_compat_weights, EPS_LOW, EPS_HIGH)
            total = total + reference_policy_gradient(p, row["p_old"][t].double(), q, ids, *args)
        else:
            total = total + reference_divergence(p, q, ids, objective.divergence, objective.tail, BETA)
    if case.opd.forward_kl.placement is not Placement.none:
        ids = row["teacher_topk_ids"][t, :FORWARD_K].tolist()
        forward = reference_divergence(p, q, ids, Divergence.forward, Tail.renorm_teacher, BETA)
        total = total + case.opd.forward_kl.coefficient * row["forward_kl_gate"][t].double() * forward
    return total


def naive_loss(model: Qwen3ForCausalLM, rows: list[Row], case: Case) -> tuple[Tensor, Tensor]:
    """The loss of one mini-batch and its mean exact term, token by token, from explicit probabilities."""
    own = rest = divergence = torch.zeros((), dtype=torch.float64)
    tokens = eligible = 0
    for row in rows:
        p = next_token_probs(model, row, case.temperature)[len(row["prompts"]) - 1 :]
        for t, y in enumerate(row["responses"].tolist()):
            if not row["response_mask"][t]:
                continue
            tokens += 1
            rest = rest + case.entropy_coeff * (p[t] * p[t].log()).sum()
            weight = row["opd_weights"][t].double() if case.weighted else torch.tensor(1.0)
            if weight > 0:
                eligible += 1
                own = own + (naive_policy(p[t, y], row, t) if case.policy else 0.0)
                divergence = divergence + weight * naive_exact(p[t], row, t, case)
    return (own + divergence) / eligible + rest / tokens, divergence / eligible


def layouts(world: int, name: str, fused: bool) -> list[str]:
    """The layouts that a world runs a case in.

    One rank runs them all. Two ranks run each case with one sequence per micro-batch and with a rank without tokens,
    and every other layout in a quarter of the cases: a layout changes what a rank computes, and ranks only sum it up.
    """
    if world == 1:
        return list(LAYOUTS)
    if world == HYBRID:
        return [next(iter(LAYOUTS))] if (name, fused) in HYBRID_CASES else []
    first, *middle, last = LAYOUTS
    return [first, middle[paths().index((name, fused)) % len(middle)], last]


def runs(world: int) -> list[tuple[str, bool, str]]:
    """(case, fused, layout) of every update in a world."""
    return [(name, fused, layout) for name, fused in paths() for layout in layouts(world, name, fused)]


def run_worlds(path: str, folder: Path) -> dict[int, dict[str, Any]]:
    """The results of every world, by its number of ranks."""
    env = os.environ | {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, path, str(folder)], env=env, check=True, timeout=600)
    return {world: torch.load(folder / f"world{world}.pt") for world in WORLDS}


def build_engine(path: str, shards: int = -1) -> Any:
    """The engine that `recipe=opd cluster=local_cpu` builds, with plain SGD: weights show the gradient as it is."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    from opd_verl.schema import MODEL_TYPE

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
            fsdp_size=shards,
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
    data = tu.list_of_dict_to_tensordict([{k: v for k, v in row.items() if k not in ("p_old", "kind")} for row in mine])
    common = {"use_remove_padding": False, "use_dynamic_bsz": False, "calculate_entropy": True, "pad_token_id": 0}
    tu.assign_non_tensor(data, **{**common, "global_batch_size": len(rows), **flags})
    return data


def gathered(value: Any) -> list[Any]:
    """`value` of every rank."""
    actual = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(actual, value)
    return actual


def infer(engine: Any, temperature: float, layout: str, fused: bool) -> dict[str, list[Tensor]]:
    """Outputs of the log-prob pass, per sequence of the whole mini-batch."""
    flags = {"opd_student_topk": K, "opd_at_teacher_topk": True, "opd_fused_rows": FUSED_ROWS if fused else -1}
    data = share(make_rows(), temperature=temperature, compute_loss=False, **flags, **LAYOUTS[layout])
    with engine.eval_mode():
        output = engine.infer_batch(data)["model_output"]
    ranks = gathered({name: [row.clone() for row in value.unbind()] for name, value in output.items()})
    return {name: [row for rank in ranks for row in rank[name]] for name in output}


def make_loss(case: Case) -> Any:
    """The loss as the trainer makes it."""
    from omegaconf import OmegaConf

    from opd_verl.training.update.make_loss import make_loss

    actor = {
        "_target_": "verl.workers.config.FSDPActorConfig",
        "strategy": "fsdp2",
        "rollout_n": 1,
        "ppo_micro_batch_size_per_gpu": 1,
        "clip_ratio_low": EPS_LOW,
        "clip_ratio_high": EPS_HIGH,
        "policy_loss": {
            "_target_": "verl.workers.config.PolicyLossConfig",
            "loss_mode": "opd" if case.policy else "opd_none",
        },
        "entropy_coeff": case.entropy_coeff,
    }
    return make_loss(OmegaConf.create(actor), case.opd)


def train(
    engine: Any, case: Case, fused: bool, half_masked: bool = False, order: list[int] | None = None, **layout: Any
) -> Any:
    """One update from the first weights: loss, gradient norm, gradients, new weights, metrics; weights are put back."""
    from verl.utils.metric import Metric

    rows = make_rows(half_masked, case.opd.objective.support.value)
    rows = [rows[index] for index in order] if order else rows
    if not case.weighted:
        rows = [{name: value for name, value in row.items() if name != "opd_weights"} for row in rows]
    flags = {"temperature": case.temperature, "opd_fused_rows": FUSED_ROWS if fused else -1, **layout}
    flags["calculate_entropy"] = case.entropy_coeff != 0
    first = {name: weight.detach().clone() for name, weight in engine.module.named_parameters()}
    with engine.train_mode():
        output = engine.train_batch(share(rows, **flags), make_loss(case))
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


def label(name: str, fused: bool, layout: str) -> str:
    """The key of one result."""
    return f"{name}-{'fused' if fused else 'plain'}-{layout}"


def run_rank(path: str, folder: str, rank: int, world: int) -> None:
    """Every case of a world on one rank; rank 0 writes the results of all."""
    from opd_verl.fused.head import LMHead

    rendezvous = f"file://{folder}/rendezvous{world}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    engine = build_engine(path, WORLDS[world])
    actual: dict[str, Any] = {
        label(f"infer{temperature}", fused, layout): infer(engine, temperature, layout, fused)
        for temperature in (1.0, 0.7)
        for layout in (INFER_LAYOUTS if world != HYBRID else ())
        for fused in (True, False)
    }
    engine.teacher_head = LMHead(teacher_weight(), None, scale=1.0, softcap=None, temperature=1.0)
    for name, fused, layout in runs(world):
        actual[label(name, fused, layout)] = train(engine, CASES[name], fused, **LAYOUTS[layout])
    if rank == 0:
        torch.save(actual, f"{folder}/world{world}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main(path: str, folder: str) -> None:
    """Imports once, then forks the ranks of one world after the other; torch has started no threads until then."""
    import verl.trainer.config
    import verl.utils.tensordict_utils
    import verl.workers.config
    import verl.workers.engine  # noqa: F401

    import opd_verl.training.update.make_loss  # noqa: F401

    fork = multiprocessing.get_context("fork")
    for world in WORLDS:
        ranks = [fork.Process(target=run_rank, args=(path, folder, rank, world)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        codes = [process.exitcode for process in ranks]
        assert codes == [0] * world, f"{world} ranks ended with {codes}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
