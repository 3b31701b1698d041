"""When a rollout goes to the teacher, and which seed it is sampled with."""

import asyncio
from typing import Any

import numpy as np
import pytest
from agent_loop_harness import output
from omegaconf import OmegaConf

from opd_verl.config.sections import ContextConfig
from opd_verl.contexts import CONTEXT_HOOKS
from opd_verl.schema import TEACHER_PROMPTS


def test_every_output_is_submitted_before_the_reward_under_verls_key(worker: Any) -> None:
    sample = {"uid": "000003.00001", "session_id": 2, "global_steps": np.int64(3)}
    asyncio.run(worker._agent_loop_postprocess([output([1, 2], [3]), output([1], [4, 5])], False, **sample))
    assert worker.events == [
        ("000003.00001_2_0", [1, 2], [3], 3),
        ("000003.00001_2_1", [1], [4, 5], 3),
        "verl: reward, TransferQueue",
    ]


class Template:
    """A tokenizer whose chat template is the numbers of the message, and 0."""

    def apply_chat_template(self, messages: Any, **options: Any) -> list[int]:
        assert options == {"add_generation_prompt": True, "tokenize": True, "return_dict": False, "thinking": False}
        return [*map(int, messages[-1]["content"].split()), 0]


def test_the_teacher_reads_the_privileged_context_and_the_trainer_finds_its_prompt(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.context, worker.tokenizer = ContextConfig("numbers_of_a_test", 2), Template()
    worker.config = OmegaConf.create({"data": {"apply_chat_template_kwargs": {"thinking": False}}})
    monkeypatch.setitem(CONTEXT_HOOKS, "numbers_of_a_test", lambda sample: f"{sample['hint']} ")
    sample = {"uid": "u", "session_id": 0, "global_steps": 1, "hint": "8 9", "raw_prompt": [MESSAGE]}
    asyncio.run(worker._agent_loop_postprocess(output([5, 6, 0], [3]), False, **sample))
    assert worker.events == [("u_0_0", [8, 9, 5, 6, 0], [3], 1), "verl: reward, TransferQueue"]
    assert worker.stored[TEACHER_PROMPTS].tolist() == [8, 9, 5, 6, 0]
    with pytest.raises(ValueError, match="agent loops with one output"):
        asyncio.run(worker._agent_loop_postprocess([output([5, 6, 0], [3])] * 2, False, **sample))


MESSAGE = {"role": "user", "content": "5 6"}


def test_validation_rollouts_are_not_scored(worker: Any) -> None:
    asyncio.run(worker._agent_loop_postprocess(output([1], [2]), True, uid="u", session_id=0, global_steps=1))
    assert worker.events == ["verl: reward, TransferQueue"]


def seed(worker: Any, step: int = 1, row: int = 0, session: int = 0, validate: bool = False) -> int:
    trajectory = {"step": step, "sample_index": row, "validate": validate}
    uid = f"{step:06d}.{row:05d}"
    return asyncio.run(worker._run_agent_loop({}, trajectory, uid=uid, session_id=session))["seed"]


def test_seeds_differ_between_rollouts_and_are_the_same_in_every_run(worker: Any) -> None:
    seeds = [seed(worker, step, row, session) for step in (1, 2) for row in range(4) for session in range(3)]
    assert len(set(seeds)) == len(seeds)
    assert seed(worker, 2, 3, 1) == seed(worker, 2, 3, 1)
    assert seed(worker, validate=True) != seed(worker)
    worker.rollout_config.seed = 8
    assert seed(worker) not in seeds


def test_without_the_setting_verl_chooses(worker: Any) -> None:
    worker.seed_rollouts = False
    assert asyncio.run(worker._run_agent_loop({"top_p": 1.0}, {}, uid="u", session_id=0)) == {"top_p": 1.0}
