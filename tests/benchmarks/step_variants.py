"""All variants of the two groups by name."""

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
class Variant:
    """A way to compute a group's loss and gradients.

    prepare makes a step from inputs; needs: packages that must be there; compiled: by torch.compile, for each shape.
    """

    name: str
    group: str
    text: str
    prepare: Callable[[Inputs], Step]
    needs: tuple[str, ...] = ()
    compiled: bool = False

    @property
    def installed(self) -> bool:
        """Whether the packages it needs can be found."""
        return all(find_spec(package) for package in self.needs)


TRL = ("trl", "accelerate", "datasets", "transformers")
LIGER = ("liger_kernel", "triton", "transformers")
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("ours", "A", "ours: fused_support_loss", support_fused),
        Variant("verl", "A", "verl, default", partial(verl_topk, chunked=False), ("verl",)),
        Variant("verl_chunked", "A", "verl, use_chunked_topk", partial(verl_topk, chunked=True), ("verl",)),
        Variant("floor", "A", "floor: 3 matrix products", partial(products, with_teacher=False)),
        Variant("plain", "A", "plain path, autograd", support_plain),
        Variant("ours_recompute", "A", "ours: fused_log_probs, no diagnostics", support_recomputing),
        Variant("ours_full", "B", "ours: fused_full_divergence", full_fused),
        Variant("trl", "B", "TRL generalized_jsd_loss", trl_jsd, TRL),
        Variant("liger_compiled", "B", "Liger, compiled", partial(liger_jsd, compiled=True), LIGER, compiled=True),
        Variant("liger", "B", "Liger, not compiled", partial(liger_jsd, compiled=False), LIGER),
        Variant("floor_full", "B", "floor: 4 matrix products", partial(products, with_teacher=True)),
        Variant("plain_full", "B", "plain path, autograd", full_plain),
    )
}
