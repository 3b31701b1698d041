"""Names all variants of both groups."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from step_inputs import Inputs
from step_ours import (
    Step,
    full_fused,
    full_plain,
    products,
    support_fused,
    support_plain,
    support_recomputing,
)
from step_peers import liger_jsd, trl_jsd, verl_topk

TITLES = {
    "A": "Group A: top-k forward KL at the teacher's ids, with overlap diagnostics",
    "B": "Group B: full-vocabulary reverse KL, both sides from hidden states",
}
OURS = {"A": "ours", "B": "ours_full"}
FLOOR = {"A": "floor", "B": "floor_full"}
PLAIN = {"A": "plain", "B": "plain_full"}


@dataclass(frozen=True)
class StepVariant:
    """A way to compute a group's loss and gradients."""

    name: str
    group: str
    text: str
    """Name in the tables."""
    prepare: Callable[[Inputs], Step]
    """Makes a step from inputs."""
    needs: tuple[str, ...] = ()
    """Packages that must be installed."""
    compiled: bool = False
    """Whether torch.compile compiles it, for each shape anew."""

    @property
    def installed(self) -> bool:
        """Whether all its packages are installed."""
        return all(find_spec(package) for package in self.needs)


TRL = ("trl", "accelerate", "datasets", "transformers")
LIGER = ("liger_kernel", "triton", "transformers")
VARIANTS = {
    variant.name: variant
    for variant in (
        StepVariant("ours", "A", "ours: fused_support_loss", support_fused),
        StepVariant("verl", "A", "verl, default", partial(verl_topk, chunked=False), ("verl",)),
        StepVariant("verl_chunked", "A", "verl, use_chunked_topk", partial(verl_topk, chunked=True), ("verl",)),
        StepVariant("floor", "A", "floor: 3 matrix products", partial(products, with_teacher=False)),
        StepVariant("plain", "A", "plain path, autograd", support_plain),
        StepVariant("ours_recompute", "A", "ours: fused_log_probs, no diagnostics", support_recomputing),
        StepVariant("ours_full", "B", "ours: fused_full_divergence", full_fused),
        StepVariant("trl", "B", "TRL generalized_jsd_loss", trl_jsd, TRL),
        StepVariant("liger_compiled", "B", "Liger, compiled", partial(liger_jsd, compiled=True), LIGER, compiled=True),
        StepVariant("liger", "B", "Liger, not compiled", partial(liger_jsd, compiled=False), LIGER),
        StepVariant("floor_full", "B", "floor: 4 matrix products", partial(products, with_teacher=True)),
        StepVariant("plain_full", "B", "plain path, autograd", full_plain),
    )
}
