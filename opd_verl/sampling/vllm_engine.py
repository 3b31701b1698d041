"""Offline vLLM as a `SampleFunction`."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opd_verl.sampling.settings import EngineSettings, SamplingSettings
from opd_verl.sampling.shards import Request, Response

if TYPE_CHECKING:
    from tqdm import tqdm
    from vllm import CompletionOutput, SamplingParams

IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Environment that keeps vLLM's engine in this process. Requests over a socket would join the batch as they arrive, and
a batch of another size rounds differently; requests added in this process make the same batches in every run."""
CPU_BATCH = 4096
"""Prompt tokens per batch on a CPU: vLLM's own default there."""
WORKER = "verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension"
"""verl's worker extension, which masks the padding ids above the tokenizer's ids, in verl's rollouts and here."""


class VllmEngine:
    """One loaded model. `sample` may be called many times; calls do not influence each other."""

    def __init__(
        self, model: str, engine: EngineSettings, settings: SamplingSettings, longest: int, **more: object
    ) -> None:
        """longest: tokens of the longest prompt with its response; more: other arguments of vLLM's LLM."""
        on_cpu = _prepare_environment()  # before the import, which reads the environment
        from vllm import LLM

        self.settings = settings
        # One dictionary of Any: our plain strings and numbers are not checked against the literal types of LLM's
        # 40 parameters.
        options: dict[str, Any] = {
            "dtype": engine.dtype or ("float32" if on_cpu else "auto"),
            "enforce_eager": on_cpu if engine.enforce_eager is None else engine.enforce_eager,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "trust_remote_code": engine.trust_remote_code,
            "max_model_len": longest,
            "seed": 0,  # vLLM's global seed; every request has a seed of its own
            "worker_extension_cls": WORKER,
        }
        if on_cpu:
            # With chunked prefill vLLM rewinds a seeded request's generator after each piece of a prompt, and a CPU
            # generator cannot be rewound. Without it a whole prompt must fit one batch.
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(CPU_BATCH, longest)}
        else:
            options["gpu_memory_utilization"] = engine.gpu_memory_utilization
        options |= more
        self.llm = LLM(model, **options)
        self.tokenizer = self.llm.get_tokenizer()
        self.llm.collective_rpc("monkey_patch_model", kwargs={"vocab_size": len(self.tokenizer)})

    def sample(self, requests: Sequence[Request], bar: "Callable[..., tqdm] | None" = None) -> list[Response]:
        """Responses in the order of the requests; `bar` makes the progress bar (arguments as tqdm's)."""
        # If an earlier call left a prompt's beginning in the cache, vLLM reads the prompt in other pieces and rounds
        # differently; an empty cache keeps responses independent of earlier calls.
        self.llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": request.prompt_ids} for request in requests]
        params = [self._params(request) for request in requests]
        outputs = self.llm.generate(prompts, params, use_tqdm=bar or False)  # pyright: ignore[reportArgumentType]
        return [self._response(output.outputs[0]) for output in outputs]

    def _params(self, request: Request) -> "SamplingParams":
        from vllm import SamplingParams

        settings = self.settings
        return SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=request.max_tokens or settings.max_tokens,
            seed=request.seed,
            detokenize=False,  # `_response` decodes once, at the end
        )

    def _response(self, output: "CompletionOutput") -> Response:
        ids = list(output.token_ids)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Response(ids, text, finished=output.finish_reason == "stop")


def _prepare_environment() -> bool:
    """Sets the variables that vLLM reads on import. Returns whether this machine computes on its CPU."""
    from opd_verl.cpu.selected import CPU_ENVIRONMENT, cpu_selected

    for name, value in (IN_PROCESS | CPU_ENVIRONMENT if cpu_selected() else IN_PROCESS).items():
        os.environ.setdefault(name, value)
    return cpu_selected()
