"""An inference server for a teacher, without vLLM: it answers what vLLM would, from the tiny model."""

from types import SimpleNamespace
from typing import Any

import torch
from tiny_models import tiny_qwen3

VOCAB, LIMIT = 96, 90


class Server:
    """verl's vLLMHttpServer as a teacher meets it. `broken` says what it does wrong, and for which keys."""

    def __init__(self) -> None:
        self.model = tiny_qwen3(VOCAB)
        self.asked: list[tuple[str, int]] = []
        self.broken: dict[str, str] = {}

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        count = sampling_params["prompt_logprobs"]
        self.asked.append((request_id, count))
        how = next((how for key, how in self.broken.items() if request_id.startswith(f"{key}.")), "")
        if how == "raises":
            raise RuntimeError("planted in the server")
        if how == "aborts":
            return SimpleNamespace(extra_fields={}, stop_reason="aborted")
        if how == "mixes up":
            prompt_ids = [(token + 1) % LIMIT for token in prompt_ids]
        return SimpleNamespace(extra_fields=self.answer(prompt_ids, count), stop_reason="completed")

    def answer(self, ids: list[int], count: int) -> dict[str, Any]:
        from verl.workers.rollout.vllm_rollout.utils import extract_prompt_logprobs

        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, :, :LIMIT]
        rows: list[Any] = [None]
        for log_q, token in zip(logits.log_softmax(-1)[:-1], ids[1:], strict=True):
            order = log_q.argsort(descending=True).tolist()
            wanted = dict.fromkeys([token, *order[:count]])
            rows.append(
                {item: SimpleNamespace(logprob=float(log_q[item]), rank=order.index(item) + 1) for item in wanted}
            )
        collected: dict[str, Any] = {}
        extract_prompt_logprobs(SimpleNamespace(prompt_logprobs=rows), count, collected)  # type: ignore[arg-type]
        return collected

    def breaks(self, broken: dict[str, str]) -> None:
        self.broken = broken

    def forget(self) -> None:
        self.asked, self.broken = [], {}

    def ids(self) -> list[tuple[str, int]]:
        return self.asked
