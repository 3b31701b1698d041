"""Metrics of a training step, logged by the driver; means are pooled over all response tokens of the batch."""

from torch import Tensor

from opd_verl.credit.inputs import RewardInputs


def token_mean(values: Tensor, mask: Tensor) -> float:
    """Mean over the tokens with mask 1; 0.0 where there is none."""
    return (values * mask).sum().item() / max(int(mask.sum()), 1)


def step_metrics(inputs: RewardInputs, reward: Tensor) -> dict[str, float]:
    """`opd/*` of one step (see `opd_verl.metrics.names`), with the numbers that hooks put into `inputs.metrics`.

    Args:
        inputs: the inputs of the hooks.
        reward: r_t [B, R], nats, 0 where masked.
    """
    mask = inputs.mask
    metrics = {"opd/student_entropy": token_mean(inputs.student_entropy, mask)}
    if inputs.off_policy is None or not inputs.off_policy.all():
        metrics |= on_policy_metrics(inputs, reward)
    if inputs.truncated is not None:
        metrics["opd/truncated_share"] = inputs.truncated.float().mean().item()
    if inputs.teacher_entropy is not None:
        metrics["opd/teacher_entropy"] = token_mean(inputs.teacher_entropy, mask)
    if inputs.log_p_topk is not None and inputs.log_q_topk is not None:
        metrics["opd/student_topk_mass"] = token_mean(inputs.log_p_topk.exp().sum(-1), mask)
        metrics["opd/teacher_mass_at_student_topk"] = token_mean(inputs.log_q_topk.exp().sum(-1), mask)
    return metrics | inputs.metrics


def on_policy_metrics(inputs: RewardInputs, reward: Tensor) -> dict[str, float]:
    """Metrics of the student's own samples: log p_old(y) - log q(y) estimates the reverse KL only where y ~ p_old."""
    mask = inputs.mask if inputs.off_policy is None else inputs.mask * ~inputs.off_policy[:, None]
    return {
        "opd/reward_mean": token_mean(reward, mask),
        "opd/reward_min": reward[mask.bool()].min().item() if mask.any() else 0.0,
        "opd/reverse_kl": token_mean(inputs.log_p_old - inputs.log_q, mask),
    }


class TeacherTotals:
    """Turns the teacher's totals since the start into metrics of each step."""

    def __init__(self) -> None:
        names = ("rollouts_asked", "rollouts_ready", "seconds_busy", "rollouts_retried", "replicas_restarted")
        self.before = dict.fromkeys(names, 0.0)

    def update(self, stats: dict[str, float]) -> dict[str, float]:
        """The step's `opd/teacher_ready_share`, `opd/teacher_retried`, `opd/teacher_restarts`, `timing_s/teacher_busy`.

        Args:
            stats: totals since the start, over all replicas.
        """
        # A restarted replica counts from 0 again, so a total may fall.
        new = {name: max(stats.get(name, 0.0) - value, 0.0) for name, value in self.before.items()}
        self.before = {name: stats.get(name, 0.0) for name in self.before}
        share = new["rollouts_ready"] / max(new["rollouts_asked"], 1.0)
        return {
            "opd/teacher_ready_share": share,
            "opd/teacher_retried": new["rollouts_retried"],
            "opd/teacher_restarts": new["replicas_restarted"],
            "timing_s/teacher_busy": new["seconds_busy"],
        }
