"""The typed parts of the `opd:` section: one dataclass for each key that holds others."""

from dataclasses import dataclass, field
from enum import StrEnum

from opd_verl.objectives.names import Divergence, Placement, Support, Tail, Truncation, Weighting


class Engine(StrEnum):
    """What runs the teacher's forward pass."""

    scorer = "scorer"
    """Ours: everything that an objective may ask for."""
    vllm = "vllm"
    """verl's own inference servers: log-probs of the sampled token and the teacher's top-k."""


@dataclass
class TeacherConfig:
    """The teacher and the Ray actors that score with it."""

    path: str = ""
    """Folder or hub name of a Hugging Face causal LM. Required."""
    tokenizer_path: str | None = None
    """Its tokenizer, where it does not lie beside the model."""
    engine: Engine = Engine.scorer
    """scorer, vllm; chosen by `teacher=`."""
    dtype: str = "bfloat16"
    """Dtype of the weights; the LM head's reductions are float32 whatever this is."""
    temperature: float = 1.0
    """Divides the teacher's logits; must equal the rollout temperature."""
    nnodes: int = 1
    """Nodes of the teacher's own resource pool."""
    n_gpus_per_node: int = 1
    """Its devices per node."""
    colocate: bool = False
    """It shares the trainer's devices, in host memory while nobody asks it, and scores when the rollouts are done."""
    shards: int = 1
    """Devices of one replica: a teacher too large for one device is spread over several. Each `shards` devices of a
    node are one replica."""
    max_tokens_per_batch: int = 16384
    """Budget of one forward pass and device, padded tokens."""
    chunk_rows: int | None = None
    """Rows of logits that exist at one time; None: what suits the device."""
    wire_dtype: str = "float16"
    """Of top-k log-probs on their way to the trainer (float16, float32); the sampled token's are float32."""
    max_state_gib: float = 2.0
    """Host or device memory for the open step's hidden states, per replica."""
    timeout_s: float = 600.0
    """A replica that has not answered by then counts as lost."""
    sync_every: int = 0
    """The teacher takes the student's weights after every so many steps; 0: its own weights stay."""
    max_missing_share: float = 0.1
    """Share of a step's response tokens that may lack a valid score; above, the run stops."""
    max_queued: int = 4096
    """Rollouts that may wait for a replica's forward pass while others are still generated."""
    early: bool = True
    """It scores rollouts while others are still generated. False: all when the trainer asks, in batches that are the
    same in every run: a resumed run then gives the same numbers to the last digit where its rollouts do."""
    load_timeout_s: float = 1800.0
    """Seconds a replica may take to load its weights, their download included."""
    same_template: bool = True
    """Its chat template must make the student's prompts, with data.apply_chat_template_kwargs."""
    attn_implementation: str = "sdpa"
    """transformers attention of the teacher."""
    trust_remote_code: bool = False
    """Lets the teacher's repository run its own model code."""


@dataclass
class NamedTeacherConfig(TeacherConfig):
    """One of several teachers. What it does not set is that of `opd.teacher`; `path` it must set."""

    weight: float = 1.0
    """combine=average: its share in the mixture, relative to the others'."""
    values: list[str] = field(default_factory=list)
    """combine=route: values of the data field whose rollouts it scores."""


class Combine(StrEnum):
    """How several teachers score."""

    route = "route"
    """A field of the data picks the one teacher of a rollout."""
    average = "average"
    """All score every rollout; q is the weighted mean of theirs at each token."""


@dataclass
class ContextConfig:
    """What the teacher reads before the question and the student does not."""

    name: str | None = None
    """A registered context (`opd_verl.contexts`); None: the teacher reads what the student reads."""
    max_tokens: int = 4096
    """The most tokens that it may add to a prompt."""


@dataclass
class ObjectiveConfig:
    """What is minimised: support x divergence x tail, or a registered objective."""

    name: str | None = None
    """A registered objective of yours; None: what `support` and `paper_compat` say."""
    support: Support = Support.sampled
    """`sampled`: clipped surrogate on r_t. Any other: an exact divergence on these token ids."""
    k: int = 0
    """Size of a top-k support; 0 where no objective and no reward hook reads one."""
    divergence: Divergence = Divergence.reverse
    """reverse KL(p || q), forward KL(q || p), or jsd."""
    beta: float = 0.5
    """The teacher's share in the mixture of `jsd`, in (0, 1)."""
    tail: Tail = Tail.renorm
    """What happens to the probability outside the support."""
    paper_compat: bool = False
    """Policy gradient with a clip per support token, as Rethinking's published runs, instead of the exact gradient."""
    paper_compat_weights: Weighting = Weighting.student
    """Weight of each support token under paper_compat."""


@dataclass
class ForwardKLConfig:
    """EOPD's second term: forward KL on the teacher's top-k, added to the objective."""

    placement: Placement = Placement.none
    """none, gated (EOPD), full, random."""
    tau: float = 0.8
    """`gated`: teacher entropy above which the term applies, nats."""
    k: int = 16
    """Size of the teacher's top-k."""
    share: float = 0.2
    """`random`: share of every rollout's positions."""
    coefficient: float = 1.0
    """Factor of the term."""


@dataclass
class OffPolicyConfig:
    """Responses that are not the student's own: GKD's lambda, knowledge distillation (objectives/README.md 6)."""

    share: float = 0.0
    """Share of rollouts whose response comes from the data set; 0: all are the student's, 1: none is."""
    field: str = "response_ids"
    """The data field with each prompt's responses: a list of texts, or of lists of token ids."""
    cross_entropy: float = 0.0
    """Factor of -log p(y) at the tokens of these responses."""


@dataclass
class TokenConfig:
    """Which response tokens distillation trains on, and how much each counts."""

    masks: list[str] = field(default_factory=list)
    """Registered token masks; a token must pass all of them."""
    weights: list[str] = field(default_factory=list)
    """Registered token weights, multiplied."""
    share: float = 0.2
    """Masks top_*_entropy: share of every rollout's positions that is kept."""
    low_entropy: float = 0.3
    """Masks drop_*q3: student entropy below which a token counts as confident, nats."""
    divergence_quantile: float = 0.5
    """Mask high_divergence: quantile of |r_t| within a rollout above which a token is kept."""
    first_position: int = 0
    """Mask depth_window: first position that is kept."""
    last_position: int | None = None
    """Mask depth_window: last position that is kept; None: no limit."""
    half_life: float = 4096.0
    """Weight depth_decay: positions after which a token counts half."""
    correct: float = 1.0
    """Weight correctness: of tokens in correct rollouts."""
    incorrect: float = 1.0
    """Weight correctness: of tokens in incorrect rollouts."""
    truncated: Truncation = Truncation.keep
    """keep, mask, mask_tail or drop rollouts that hit the length limit."""
    tail_tokens: int = 256
    """`mask_tail`: how many of the last tokens."""


@dataclass
class AdvantageConfig:
    """From r_t to the advantage, in this order."""

    clamp: float | None = None
    """Clamps r_t to [-clamp, clamp], nats; None: no clamp."""
    gamma: float = 0.0
    """Discount of the reward-to-go; 0: every token its own reward."""
    length_normalise: bool = False
    """Divides the reward-to-go by the sum of its discounts (MiniLLM)."""
    shaping_alpha: float = 0.0
    """Advantage shaping A + min(alpha H, |A| / kappa) (EOPD eq. 11); 0: off, the paper's value is 0.1."""
    shaping_kappa: float = 2.0
    """kappa of the shaping."""


@dataclass
class MixConfig:
    """A = task * A_task + opd * A_opd."""

    opd: float = 1.0
    """Weight of distillation; of an exact divergence too."""
    task: float = 0.0
    """Weight of the task reward's advantage."""
    estimator: str = "grpo"
    """verl's advantage estimator for the task reward."""


@dataclass
class DiagnosticsConfig:
    """What is measured in every step besides what training reads (`opd_verl.metrics.live`)."""

    enabled: bool = True
    """Entropy shape, quadrants, reward by depth, and the signs of a run that goes wrong."""
    every: int = 10
    """Steps from one look at both top-k to the next, for overlap and forward KL; 0: none. An objective that reads both
    top-k has them in every step."""
    k: int = 16
    """Ids of a top-k that only this look reads."""
    depth_buckets: int = 8
    """Ranges of positions that the reward is averaged over."""


@dataclass
class SamplesConfig:
    """Rollouts to look at: pages in `<trainer.default_local_dir>/samples`, and a table where the run logs to wandb."""

    every: int = 10
    """Steps from one page to the next; 0: none."""
    count: int = 4
    """Rollouts on a page: lowest and highest mean r_t, the others by lot."""
