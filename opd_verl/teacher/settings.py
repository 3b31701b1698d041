"""How a teacher replica loads and runs its model."""

from dataclasses import dataclass

WIRE_DTYPES = ("float16", "float32")


def due(step: int, every: int) -> bool:
    """Whether something that comes every so many steps comes in this one; 0: in none."""
    return every > 0 and step % every == 0


@dataclass(frozen=True)
class TeacherSettings:
    """How a replica loads and runs the teacher; the model's path is given beside it."""

    vocab_limit: int | None = None
    """Ids 0..vocab_limit-1 are normalised over; None: len(tokenizer)."""
    dtype: str = "float32"
    """Of the weights: float32, bfloat16, or auto (the checkpoint's own)."""
    device: str | None = None
    """None: CUDA if the actor sees a GPU, else CPU."""
    colocate: bool = False
    """The device is shared: the model is in host memory except while somebody collects, and scores nothing before."""
    shards: int = 1
    """Devices of the replica, each in a process of its own; the model's layers are spread over them."""
    attn_implementation: str = "sdpa"
    trust_remote_code: bool = False
    temperature: float = 1.0
    """The rollout temperature; teacher logits are divided by it."""
    max_tokens_per_batch: int = 16384
    """Padded tokens per forward pass and device."""
    chunk_rows: int | None = None
    """Rows per pass of the LM head; chunk_rows x vocabulary x 4 bytes are alive, twice. None: what suits the device."""
    weights_pointer: str | None = None
    """File that names the folder of newer weights than the model's own (`opd_verl.teacher.snapshot`), if it exists."""
    topk: int = 0
    """Teacher top-k computed with every forward pass; the most that a collect can ask for."""
    look_every: int = 0
    """Steps from one look of the diagnostics to the next; then the replica also keeps a top-k and hidden states."""
    look_topk: int = 0
    """That top-k."""
    wire_dtype: str = "float16"
    """Of top-k and at-ids log-probs on the wire; the sampled token's are always float32."""
    keep_hidden: bool = True
    """Keeps the last hidden states, for log-probs at ids named later and to hand them out; without, 12 bytes per token
    are kept."""
    max_queued: int = 4096
    """Rollouts that may wait for their forward pass; early submissions beyond are turned away until `collect`."""
    early: bool = True
    """Whether early submissions are taken. Otherwise a forward pass holds rollouts of one `collect` alone, in an order
    that depends on nothing else."""
    max_state_bytes: int = 2 << 30
    """Hidden states kept for late questions; older ones are recomputed when asked for."""

    def __post_init__(self) -> None:
        if self.wire_dtype not in WIRE_DTYPES:
            raise ValueError(f"wire_dtype={self.wire_dtype!r}; choose float16 or float32 (bf16 ruins the reward)")
        if self.topk < 0:
            raise ValueError(f"topk={self.topk} must not be negative")
        if self.shards < 1:
            raise ValueError(f"shards={self.shards} must be positive")
        if self.colocate and self.shards > 1:
            raise ValueError(f"shards={self.shards}: a colocated teacher lies whole on each device")

    def looks(self, step: int) -> bool:
        """Whether the diagnostics look closer in this step."""
        return due(step, self.look_every)

    def check_wanted(self, topk: int, at_ids: bool, hidden: bool, looks: bool = False) -> None:
        """Raises ValueError for what a replica of these settings leaves out (in a step that `looks` closer)."""
        kept = max(self.topk, self.look_topk) if looks else self.topk
        if topk > kept:
            raise ValueError(f"top-{topk} asked of a teacher that keeps top-{kept}; raise its `topk`")
        if not (self.keep_hidden or looks) and (at_ids or hidden):
            what = "hidden states" if hidden else "log-probs at ids"
            raise ValueError(f"{what} asked of a teacher that keeps no hidden states; set its `keep_hidden`")
