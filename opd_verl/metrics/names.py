"""Every metric that opd_verl adds to verl's, documented once. `python -m opd_verl.metrics.names` prints the list."""

METRICS: dict[str, str] = {
    "opd/reward_mean": "mean r_t, the sum of the reward hooks, over response tokens; nats, rises towards 0",
    "opd/reward_min": "smallest r_t of a response token; nats",
    "opd/reverse_kl": "mean log p_old(y) - log q(y) over response tokens: the sampled reverse KL; nats, falls to 0",
    "opd/student_entropy": "mean full-vocabulary entropy of the student over response tokens; nats",
    "opd/teacher_entropy": "mean full-vocabulary entropy of the teacher at the same positions; nats (averaged teachers "
    "and `teacher=vllm` have none)",
    "opd/teacher_missing_share": "share of response tokens without a valid teacher score; they are masked, never 0.0",
    "opd/teacher_ready_share": "share of the step's rollouts that the teacher had scored before the trainer asked",
    "opd/teacher_retried": "rollouts that the teacher was asked for a second time in this step: lost, failed or NaN",
    "opd/teacher_restarts": "teacher replicas that were restarted in this step because they hung or gave nonsense",
    "opd/truncated_share": "share of rollouts that hit the length limit without an end-of-sequence token",
    "opd/alerts": "number of signs of a failing run that speak (`opd/alert/<sign>`)",
    "opd/response_length": "mean response length; tokens",
    "opd/student_high_entropy_share": "share of response tokens with a student entropy of at least 1 nat (EOPD 3.1)",
    "opd/q1_mass": "share of response tokens in Q1: r_t > 0 and the student is committed, below "
    "`opd.tokens.low_entropy` (Capacity, table 5)",
    "opd/q2_mass": "share in Q2: r_t > 0 and the student is forking: useful distillation",
    "opd/q3_mass": "share in Q3: r_t < 0 and the student is committed: forced correction",
    "opd/q4_mass": "share in Q4: r_t < 0 and the student is forking",
    **{f"opd/q{n}_force": f"Q{n}'s mass times its mean abs r_t; nats" for n in range(1, 5)},
    "opd/destructive_mass": "share of response tokens in Q3 of correct rollouts (Capacity, table 4)",
    "opd/corrective_mass": "share in Q3 of incorrect rollouts",
    "timing_s/diagnostics": "seconds that the measurements of the step took",
    "timing_s/teacher": "seconds that the trainer waited for teacher scores",
    "timing_s/teacher_busy": "seconds of the teacher's forward passes, summed over replicas, waited for or not",
}
"""Logged by every OPD run. The rows from `opd/alerts` to `timing_s/diagnostics` need `opd.diagnostics.enabled`."""

CONDITIONAL: dict[str, str] = {
    "actor/opd/divergence": "the exact objective as trained on, mean over eligible tokens: the divergence of the "
    "recipe in nats (the surrogate's value under paper_compat or an objective of yours); mean over the mini-batches",
    "actor/opd/forward_kl": "the extra forward KL as trained on: gated, mean over all eligible tokens; nats",
    "actor/opd/cross_entropy": "-log p(y) at the tokens of the data set's responses as trained on, mean over all "
    "eligible tokens; nats",
    "opd/off_policy_share": "share of rollouts whose response is the data set's; `opd/reward_mean`, `opd/reward_min` "
    "and `opd/reverse_kl` leave them out, and are absent in a step without other rollouts",
    "opd/gated_share": "share of response tokens where the extra forward KL applies",
    "opd/student_topk_mass": "student probability on its own top-k",
    "opd/teacher_mass_at_student_topk": "teacher probability on the student's top-k",
    "opd/overlap_ratio": "share of the student's top-k that is in the teacher's (Rethinking eq. 6); this and the next "
    "four every `opd.diagnostics.every` steps, or in each step where training reads both top-k",
    "opd/overlap_student_mass": "student probability on the ids in both top-k; 97-99% in healthy runs",
    "opd/overlap_teacher_mass": "teacher probability on the ids in both top-k",
    "opd/overlap_advantage": "mean advantage of the ids in both top-k (Rethinking eq. 7); nats, rises to 0",
    "opd/forward_kl_at_forks": "mean forward KL on the teacher's top-k where its entropy is at least 0.8 (EOPD, fig. "
    "5); nats",
    "opd/rho": "mean correlation of both entropies along a rollout (Capacity eq. 4)",
    "opd/fork_overlap": "mean overlap of both top-20% entropy positions of a rollout (Capacity eq. 5)",
    "opd/entropy_gap": "mean distance of both entropies along a rollout (Rethinking eq. 8); nats",
    "opd/mean_entropy_gap": "mean distance of a rollout's two mean entropies (Capacity eq. 6); nats",
    "opd/teacher_high_entropy_share": "share of response tokens with a teacher entropy of at least 1 nat (EOPD 3.1)",
    "opd/destructive_reward": "mean abs r_t of the destructive tokens; nats",
    "opd/corrective_reward": "mean abs r_t of the corrective tokens; nats",
    "opd/dest_corr": "Dest:Corr, destructive over corrective force; above 1 predicts regression (Capacity, table 4)",
    "opd/reward_auroc": "how well a rollout's summed r_t tells correct from incorrect (Rethinking); 0.5 tells nothing",
    "opd/depth/<first>-<last>/reward": "mean r_t of the tokens at these positions; nats",
    "opd/alert/<sign>": "1 while this sign speaks, 0 after that: length_explosion, length_collapse, entropy_collapse, "
    "falling_overlap, rising_truncation, destructive",
    "opd/support_size": "mean number of ids in a union, intersection or symmetric difference",
    "opd/kept_share": "share of response tokens with a positive weight (where masks, weights or a truncation policy "
    "are set)",
    "timing_s/teacher_sync": "seconds to hand the student's weights to the teacher",
    "opd/kept_share/<mask>": "share of response tokens that one mask alone keeps",
}
"""Logged where the configuration reads or makes them."""

if __name__ == "__main__":
    for name, meaning in (METRICS | CONDITIONAL).items():
        print(f"{name:36} {meaning}")
