"""Measures what rounding the teacher's log-probs on the wire does to the student's gradient.

    python tests/benchmarks/wire_dtype.py

Teacher logits are student logits plus noise, from 1 nat (far) to 0.003 (close). When training has brought both
together, log q - log p is small, and rounding must not drown it. Random logits of standard deviation 3 over 4096 ids,
2048 tokens, float64 apart from the rounding, seed 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TOKENS, VOCAB, K, SPREAD = 2048, 4096, 16, 3.0
NOISES = (1.0, 0.1, 0.01, 0.003)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def sampled_gradient(log_p: Tensor, log_q: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns d/dz of -A log p(y), with A = log q(y) - log p(y) detached: -A (onehot(y) - p) per token, [T, V]."""
    at = tokens[:, None]
    advantage = log_q.gather(1, at).to(dtype).double() - log_p.gather(1, at)
    gradient = log_p.exp() * advantage
    return gradient.scatter_add(1, at, -advantage)


def topk_gradient(log_p: Tensor, log_q: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns d/dz of the reverse KL on the student's top K, renormalised: p (log p/q - KL), [T, K]."""
    log_p_K, ids = log_p.topk(K)
    log_p_K, log_q_K = (x.log_softmax(-1) for x in (log_p_K, log_q.gather(1, ids).to(dtype).double()))
    ratio = log_p_K - log_q_K
    return log_p_K.exp() * (ratio - (log_p_K.exp() * ratio).sum(-1, keepdim=True))


def models(noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log p and log q, [T, V], and a token sampled from p at each position."""
    torch.manual_seed(0)
    student = SPREAD * torch.randn(TOKENS, VOCAB, dtype=torch.float64)
    log_p = student.log_softmax(-1)
    log_q = (student + noise * torch.randn_like(student)).log_softmax(-1)
    return log_p, log_q, log_p.exp().multinomial(1)[:, 0]


def relative_error(gradient: Callable[..., Tensor], noise: float, dtype: torch.dtype) -> float:
    """Returns |g_rounded - g| / |g| over all tokens."""
    log_p, log_q, tokens = models(noise)
    exact = gradient(log_p, log_q, tokens, torch.float64)
    return float((gradient(log_p, log_q, tokens, dtype) - exact).norm() / exact.norm())


def main() -> None:
    """Prints the table."""
    print("| gradient | KL(p, q), nats | " + " | ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES) + " |")
    print("|---|---|" + "---|" * len(DTYPES))
    for name, gradient in (("sampled token", sampled_gradient), (f"top-{K} reverse KL", topk_gradient)):
        for noise in NOISES:
            log_p, log_q, _ = models(noise)
            distance = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
            errors = " | ".join(f"{relative_error(gradient, noise, dtype):.1e}" for dtype in DTYPES)
            print(f"| {name} | {distance:.1e} | {errors} |")


if __name__ == "__main__":
    main()
