"""Offline vLLM as a `Sample` function."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from opd_verl.sampling.settings import EngineSettings, SamplingSettings
from opd_verl.sampling.shards import Request, Response

IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Requests that arrive over a socket join the batch when they come; added in here they make the same batches always."""
CPU_BATCH = 4096
"""Prompt tokens read together: vLLM's own default on a CPU."""
WORKER = "verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension"
"""verl's own: what masks the ids behind the tokenizer in its rollouts masks them here."""


class VllmEngine:
    """One loaded model; `sample` may be called again and again, and remembers nothing between calls."""

    def __init__(
        self, model: str, engine: EngineSettings, settings: SamplingSettings, longest: int, **more: Any
    ) -> None:
        """longest: tokens of the longest prompt with its response; more: vLLM's own arguments."""
        on_cpu = _prepare_environment()
        from vllm import LLM

        self.settings = settings
        # With vLLM's typed options as one dictionary its 40 parameters are not checked against it one by one.
        options: dict[str, Any] = {
            "dtype": engine.dtype or ("float32" if on_cpu else "auto"),
            "enforce_eager": on_cpu if engine.enforce_eager is None else engine.enforce_eager,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "trust_remote_code": engine.trust_remote_code,
            "max_model_len": longest,
            "seed": 0,
            "worker_extension_cls": WORKER,
        }
        if on_cpu:
            # vLLM rewinds a seeded request's generator behind a piece of a prompt, which a CPU's generator cannot do.
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(CPU_BATCH, longest)}
        else:
            options["gpu_memory_utilization"] = engine.gpu_memory_utilization
        self.llm = LLM(model, **(options | more))
        self.tokenizer: Any = self.llm.get_tokenizer()
        self.llm.collective_rpc("monkey_patch_model", kwargs={"vocab_size": len(self.tokenizer)})

    def sample(self, requests: Sequence[Request], bar: Callable[..., Any] | None = None) -> list[Response]:
        """Responses in the order of the requests; `bar` makes the progress bar (arguments as tqdm's)."""
        # A prompt that an earlier call left in the cache is read in other pieces, which rounds differently.
        self.llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": request.prompt_ids} for request in requests]
        params = [self._params(request) for request in requests]
        outputs = self.llm.generate(prompts, params, use_tqdm=bar or False)  # pyright: ignore[reportArgumentType]
        return [self._response(output.outputs[0]) for output in outputs]

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams

        wanted = self.settings
        return SamplingParams(
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            top_k=wanted.top_k,
            max_tokens=request.max_tokens or wanted.max_tokens,
            seed=request.seed,
            detokenize=False,
        )

    def _response(self, output: Any) -> Response:
        ids = list(output.token_ids)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Response(ids, text, finished=output.finish_reason == "stop")


def _prepare_environment() -> bool:
    """Sets what vLLM reads when it is imported; whether this is a machine without GPU."""
    from opd_verl.cpu.selected import CPU_ENVIRONMENT, cpu_selected

    for name, value in (IN_PROCESS | CPU_ENVIRONMENT if cpu_selected() else IN_PROCESS).items():
        os.environ.setdefault(name, value)
    return cpu_selected()
