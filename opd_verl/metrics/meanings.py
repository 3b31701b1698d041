"""Measurements in words, with unit and paper: for the tables of probe and report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    """The words for a measurement of `opd_verl.metrics.measurements`."""

    text: str
    paper: str
    """Paper and place that define it; empty: ours."""
    percent: bool = False
    """Whether it is shown in percent; otherwise as nats, tokens or a plain number."""


MEANINGS: dict[str, Meaning] = {
    "accuracy": Meaning("the student's accuracy on the measured rollouts", "", True),
    "response_length": Meaning("mean response length, tokens", ""),
    "truncated_share": Meaning("share of rollouts that hit the length limit", "", True),
    "missing_share": Meaning("share of response tokens without finite values; they are masked", "", True),
    "reverse_kl": Meaning("mean log p(y) - log q(y), pooled: the sampled reverse KL, nats", "Capacity eq. 2"),
    "rho": Meaning("Pearson correlation of both entropies along a rollout", "Capacity eq. 4"),
    "fork_overlap": Meaning("overlap of both top-20% entropy positions of a rollout", "Capacity eq. 5", True),
    "entropy_gap": Meaning("mean distance of H^p and H^q along a rollout, nats", "Rethinking eq. 8"),
    "mean_entropy_gap": Meaning("distance of a rollout's mean H^p and mean H^q, nats", "Capacity eq. 6"),
    "overlap_ratio": Meaning("share of the student's top-k ids that the teacher's top-k has", "Rethinking eq. 6", True),
    "overlap_student_mass": Meaning("student probability on ids in both top-k", "Rethinking", True),
    "overlap_teacher_mass": Meaning("teacher probability on ids in both top-k", "Rethinking", True),
    "overlap_advantage": Meaning("mean advantage of ids in both top-k, nats; rises to 0", "Rethinking eq. 7"),
    "student_entropy": Meaning("mean student entropy, pooled, nats", "EOPD 3.1"),
    "teacher_entropy": Meaning("mean teacher entropy at the same tokens, pooled, nats", "EOPD 3.1"),
    "student_high_entropy_share": Meaning("share of tokens with student entropy >= 1 nat", "EOPD 3.1", True),
    "teacher_high_entropy_share": Meaning("share of tokens with teacher entropy >= 1 nat", "EOPD 3.1", True),
    "forward_kl_at_forks": Meaning("mean forward KL on the teacher's top-k where H^q >= 0.8, nats", "EOPD fig. 5"),
    **{
        f"gated_share_{tau}": Meaning(f"share of tokens with H^q > {tau}", "EOPD app. E", True)
        for tau in ("0.4", "0.6", "0.8", "1", "1.2")
    },
    "q1_mass": Meaning("share of tokens: r_t > 0, committed", "Capacity table 5", True),
    "q2_mass": Meaning("share of tokens: r_t > 0, forking", "Capacity table 5", True),
    "q3_mass": Meaning("share of tokens: r_t < 0, committed (forced correction)", "Capacity table 5", True),
    "q4_mass": Meaning("share of tokens: r_t < 0, forking", "Capacity table 5", True),
    **{
        f"q{number}_force": Meaning(f"mass times mean abs r of Q{number}, nats", "Capacity table 5")
        for number in range(1, 5)
    },
    "destructive_mass": Meaning("share of tokens: Q3 of correct rollouts", "Capacity table 4", True),
    "destructive_reward": Meaning("mean abs r of the destructive tokens, nats", "Capacity table 4"),
    "corrective_mass": Meaning("share of tokens: Q3 of incorrect rollouts", "Capacity table 4", True),
    "corrective_reward": Meaning("mean abs r of the corrective tokens, nats", "Capacity table 4"),
    "dest_corr": Meaning("destructive over corrective force; above 1 predicts regression", "Capacity table 4"),
    "reward_auroc": Meaning("how well a rollout's summed r_t tells correct from incorrect", "Rethinking"),
    "end_reward": Meaning("mean r_t of the token that ends a finished rollout, nats", ""),
    "student_accuracy": Meaning("the student's accuracy, all responses", "", True),
    "teacher_accuracy": Meaning("the teacher's accuracy on the same prompts, all responses", "", True),
    "headroom": Meaning("teacher's accuracy minus student's, on the same prompts", "Rethinking", True),
}
"""By name, in the order of a table."""
