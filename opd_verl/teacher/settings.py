"""How one teacher replica loads and runs its model."""

from dataclasses import dataclass, field

from opd_verl.config.sections import TeacherConfig
from opd_verl.teacher.score import CollectSpec

WIRE_DTYPES = ("float16", "float32")


def due(step: int, every: int) -> bool:
    """Whether a job that runs every `every` steps runs in this step; 0: never."""
    return every > 0 and step % every == 0


@dataclass(frozen=True)
class TeacherSettings:
    """One replica's settings: the teacher's section of the config, and the values that the run adds."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The section `opd.teacher`, or a named teacher's."""
    vocab_limit: int | None = None
    """The softmax is over the ids 0..vocab_limit-1; None: len(tokenizer)."""
    device: str | None = None
    """None: CUDA if the actor sees a GPU, else CPU."""
    weights_pointer: str | None = None
    """File that names the folder of weights newer than the model's own (`opd_verl.teacher.snapshot`), if it exists."""
    topk: int = 0
    """Teacher top-k computed with every forward pass; a `collect` cannot ask for more."""
    keep_hidden: bool = True
    """Keeps the last hidden states, for log-probs at ids named later and for callers that ask for the states. False:
    the replica keeps 12 bytes per token."""
    look_every: int = 0
    """Steps between two looks of the diagnostics. In such a step the replica also keeps a top-k and hidden states."""
    look_topk: int = 0
    """Size of the top-k kept for a look of the diagnostics."""

    def __post_init__(self) -> None:
        teacher = self.teacher
        if teacher.wire_dtype not in WIRE_DTYPES:
            # bf16 keeps 8 significant bits: a log-prob of -8 would be off by up to 0.03 nats.
            raise ValueError(f"wire_dtype={teacher.wire_dtype!r}; choose float16 or float32 (bf16 ruins the reward)")
        if self.topk < 0:
            raise ValueError(f"topk={self.topk} must not be negative")
        if teacher.shards < 1:
            raise ValueError(f"shards={teacher.shards} must be positive")
        if teacher.colocate and teacher.shards > 1:
            raise ValueError(f"shards={teacher.shards}: a colocated teacher lies whole on each device")

    @property
    def max_state_bytes(self) -> int:
        """Bytes of hidden states kept for late questions. Dropped states are computed again when asked for."""
        return int(self.teacher.max_state_gib * 2**30)

    def looks(self, step: int) -> bool:
        """Whether the diagnostics look closer in this step."""
        return due(step, self.look_every)

    def check(self, spec: CollectSpec, at_ids: bool) -> None:
        """Raises ValueError for values that a replica of these settings does not keep in the step of `spec`.

        at_ids: whether the caller names ids.
        """
        looks = self.looks(spec.step)
        kept = max(self.topk, self.look_topk) if looks else self.topk
        if spec.topk > kept:
            raise ValueError(f"top-{spec.topk} asked of a teacher that keeps top-{kept}; raise its `topk`")
        if not (self.keep_hidden or looks) and (at_ids or spec.hidden):
            values = "hidden states" if spec.hidden else "log-probs at ids"
            raise ValueError(f"{values} asked of a teacher that keeps no hidden states; set its `keep_hidden`")
