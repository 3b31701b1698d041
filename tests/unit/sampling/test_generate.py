"""The progress bar of a sampling child, as vLLM calls it."""

from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest

from opd_verl.sampling.generate import _with_bar


@pytest.mark.parametrize("arguments", [([1, 2, 3],), ()])
def test_vllm_makes_bars_over_its_prompts_and_bars_that_it_counts_up(arguments: tuple[Any, ...]) -> None:
    terminal, shown = StringIO(), []

    def sample(requests: Any, bar: Any) -> list[Any]:
        with bar(*arguments, total=3, desc="of vLLM") as progress:
            shown.append((progress.desc, list(progress) if arguments else progress.total))
        return list(requests)

    parts: Any = SimpleNamespace(count=4, missing=lambda: [2, 3])
    vllm: Any = SimpleNamespace(sample=sample)
    assert _with_bar(vllm, terminal, "student: heldout", parts)([]) == []
    assert shown == [("student: heldout, shard 3/4", [1, 2, 3] if arguments else 3)]
    assert "student: heldout" in terminal.getvalue()
