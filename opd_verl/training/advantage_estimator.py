"""The advantage estimator `opd` in verl's registry (`algorithm.adv_estimator=opd`)."""

from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est


@register_adv_est("opd")
def opd_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, config: object = None, **kwargs: object
) -> tuple[Tensor, Tensor]:
    """`A_t = r_t` on response tokens and 0 elsewhere (objectives/README.md 1, EOPD eq. 6).

    The reward `r_t = log q_t(y_t) - log p_old,t(y_t)` (or the sum of the reward hooks named in `opd.rewards`) is
    dense: no discounting, no group statistics, no whitening. It is fixed when the rollout is scored.

    Args:
        token_level_rewards: r_t [B, R], nats.
        response_mask: 1 on response tokens [B, R].
        config: verl's `algorithm` section; unused.

    Returns:
        advantages [B, R] and returns [B, R] (equal: every token is its own episode), nats.
    """
    # An advantage is a constant of the update: no gradient may flow back into the reward.
    advantages = (token_level_rewards * response_mask).detach()
    return advantages, advantages
