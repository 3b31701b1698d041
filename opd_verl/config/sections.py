"""The typed parts of the `opd:` section: one dataclass for each key that holds other keys."""

from dataclasses import dataclass, field
from enum import StrEnum

from opd_verl.objectives.names import Divergence, Placement, Support, Tail, Truncation, Weighting


class Engine(StrEnum):
    """The program that runs the teacher's forward pass."""

    scorer = "scorer"
    """Our own scorer: it answers everything that an objective may ask for."""
    vllm = "vllm"
    """verl's inference servers: they give only log-probs of the sampled token and of the teacher's top-k."""


@dataclass
class TeacherConfig:
    """The teacher and the Ray actors that score with it."""

    path: str = ""
    """Folder or hub name of a Hugging Face causal LM. Required."""
    tokenizer_path: str | None = None
    """The teacher's tokenizer; None: it lies beside the model."""
    engine: Engine = Engine.scorer
    """The engine: scorer or vllm; set by `teacher=`."""
    dtype: str = "bfloat16"
    """Dtype of the weights. Sums over the vocabulary are float32 for every dtype."""
    temperature: float = 1.0
    """Divides the teacher's logits; must equal the rollout temperature."""
    nnodes: int = 1
    """Nodes of the teacher's own resource pool."""
    n_gpus_per_node: int = 1
    """Devices per node of the teacher's own resource pool."""
    colocate: bool = False
    """Whether the teacher shares the trainer's devices. It then waits in host memory, and scores after the rollouts."""
    shards: int = 1
    """Devices of one replica: a teacher too large for one device is spread over several. Each `shards` devices of a
    node are one replica."""
    max_tokens_per_batch: int = 16384
    """The most tokens of one forward pass on one device, padding included."""
    chunk_rows: int | None = None
    """Rows of logits that exist at one time; None: a number that suits the device."""
    wire_dtype: str = "float16"
    """Dtype of top-k log-probs on the wire: float16 or float32. Log-probs of the sampled token are always float32."""
    max_state_gib: float = 2.0
    """GiB of host or device memory for the open step's hidden states, per replica."""
    timeout_s: float = 600.0
    """Seconds after which a replica that has not answered counts as lost."""
    sync_every: int = 0
    """The teacher takes the student's weights every so many steps; 0: it keeps its own weights."""
    max_missing_share: float = 0.1
    """Share of a step's response tokens that may lack a valid score; above it the run stops."""
    max_queued: int = 4096
    """Rollouts that may wait for a replica's forward pass while others are still generated."""
    early: bool = True
    """Whether the teacher scores rollouts while others are still generated. False: it scores all of them when the
    trainer asks, in batches that are equal in every run; a resumed run with equal rollouts then repeats the numbers to
    the last digit."""
    load_timeout_s: float = 1800.0
    """Seconds a replica may take to load its weights, their download included."""
    same_template: bool = True
    """Whether the teacher's chat template must make the student's prompts, with data.apply_chat_template_kwargs."""
    attn_implementation: str = "sdpa"
    """The teacher's attention implementation in transformers."""
    trust_remote_code: bool = False
    """Lets the teacher's repository run its own model code."""


@dataclass
class NamedTeacherConfig(TeacherConfig):
    """A teacher among several. It must set `path`; any other key that it does not set comes from `opd.teacher`."""

    weight: float = 1.0
    """Share in the mixture under combine=average, relative to the others' weights."""
    values: list[str] = field(default_factory=list)
    """Values of the data field whose rollouts this teacher scores under combine=route."""


class Combine(StrEnum):
    """How several teachers score."""

    route = "route"
    """A field of the data picks a rollout's only teacher."""
    average = "average"
    """All teachers score every rollout; q is the weighted mean of their probabilities at each token."""


@dataclass
class ContextConfig:
    """A privileged context: text that the teacher reads before the question and the student does not."""

    name: str | None = None
    """A registered context (`opd_verl.contexts`); None: the teacher reads what the student reads."""
    max_tokens: int = 4096
    """The most tokens that the context may add to a prompt."""


@dataclass
class ObjectiveConfig:
    """The objective that is minimised: support x divergence x tail, or a registered objective."""

    name: str | None = None
    """Name of your registered objective; None: `support` and `paper_compat` decide."""
    support: Support = Support.sampled
    """`sampled`: clipped surrogate on r_t. Any other: an exact divergence on these token ids."""
    k: int = 0
    """Size of a top-k support; 0 where no objective and no reward hook reads a top-k."""
    divergence: Divergence = Divergence.reverse
    """reverse KL(p || q), forward KL(q || p), or jsd."""
    beta: float = 0.5
    """The teacher's share in the mixture of `jsd`, in (0, 1)."""
    tail: Tail = Tail.renorm
    """Treatment of the probability outside the support."""
    paper_compat: bool = False
    """Policy gradient with a clip per support token, as in Rethinking's published runs; False: the exact gradient."""
    paper_compat_weights: Weighting = Weighting.student
    """Weight of each support token under paper_compat."""


@dataclass
class ForwardKLConfig:
    """EOPD's second term: forward KL on the teacher's top-k, added to the objective."""

    placement: Placement = Placement.none
    """Tokens where the term applies: none, gated (EOPD), full or random."""
    tau: float = 0.8
    """Teacher entropy above which the term applies under `gated`, nats."""
    k: int = 16
    """Size of the teacher's top-k."""
    share: float = 0.2
    """Share of every rollout's positions under `random`."""
    coefficient: float = 1.0
    """Factor of the term."""


@dataclass
class OffPolicyConfig:
    """Responses that are not the student's own: GKD's lambda, knowledge distillation (objectives/README.md 6)."""

    share: float = 0.0
    """Share of rollouts whose response comes from the data set; 0: the student samples all, 1: the student none."""
    field: str = "response_ids"
    """The data field with each prompt's responses: a list of texts, or of lists of token ids."""
    cross_entropy: float = 0.0
    """Factor of -log p(y) at the tokens of the data set's responses."""


@dataclass
class TokenConfig:
    """The response tokens that distillation trains on, and their weights."""

    masks: list[str] = field(default_factory=list)
    """Registered token masks; a token must pass all of them."""
    weights: list[str] = field(default_factory=list)
    """Registered token weights, multiplied."""
    share: float = 0.2
    """Share of every rollout's positions that the masks top_*_entropy keep."""
    low_entropy: float = 0.3
    """Student entropy below which a token counts as committed, nats: for the masks drop_*q3 and the diagnostics."""
    divergence_quantile: float = 0.5
    """Quantile of |r_t| within a rollout above which the mask high_divergence keeps a token."""
    first_position: int = 0
    """First position that the mask depth_window keeps."""
    last_position: int | None = None
    """Last position that the mask depth_window keeps; None: no limit."""
    half_life: float = 4096.0
    """Positions after which a token counts half under the weight depth_decay."""
    correct: float = 1.0
    """Weight of tokens in correct rollouts under the weight `correctness`."""
    incorrect: float = 1.0
    """Weight of tokens in incorrect rollouts under the weight `correctness`."""
    truncated: Truncation = Truncation.keep
    """Treatment of rollouts that hit the length limit: keep, mask, mask_tail or drop."""
    tail_tokens: int = 256
    """How many of the last tokens `mask_tail` masks."""


@dataclass
class AdvantageConfig:
    """Steps from r_t to the advantage, in this order."""

    clamp: float | None = None
    """Clamps r_t to [-clamp, clamp], nats; None: no clamp."""
    gamma: float = 0.0
    """Discount of the reward-to-go; 0: every token gets only its own reward."""
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
    """Weight of distillation, of an exact divergence too."""
    task: float = 0.0
    """Weight of the task reward's advantage."""
    estimator: str = "grpo"
    """verl's advantage estimator for the task reward."""


@dataclass
class DiagnosticsConfig:
    """Measurements of every step beyond the fields that training reads (`opd_verl.metrics.live`)."""

    enabled: bool = True
    """Whether entropy shape, quadrants, reward by depth and the signs of a run that goes wrong are measured."""
    every: int = 10
    """Steps from one look at both top-k to the next, for overlap and forward KL; 0: none. An objective that reads both
    top-k has them in every step."""
    k: int = 16
    """Size of a top-k that only the diagnostics read."""
    depth_buckets: int = 8
    """Ranges of positions that the reward is averaged over."""


@dataclass
class SamplesConfig:
    """Sample rollouts: pages in `<trainer.default_local_dir>/samples`, and a table where the run logs to wandb."""

    every: int = 10
    """Steps from one page to the next; 0: none."""
    count: int = 4
    """Rollouts on a page: the lowest and the highest mean r_t, the others drawn at random."""
