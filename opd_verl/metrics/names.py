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
    "timing_s/teacher": "seconds that the trainer waited for teacher scores",
    "timing_s/teacher_busy": "seconds of the teacher's forward passes, summed over replicas, wherever they were hidden",
}
"""Logged by every OPD run."""

CONDITIONAL: dict[str, str] = {
    "actor/opd/divergence": "the exact objective as trained on, mean over eligible tokens: the divergence of the "
    "recipe in nats (the surrogate's value under paper_compat or an objective of yours); mean over the mini-batches",
    "actor/opd/forward_kl": "the extra forward KL as trained on: gated, mean over all eligible tokens; nats",
    "actor/opd/cross_entropy": "-log p(y) at the tokens of the data set's responses as trained on, mean over all "
    "eligible tokens; nats",
    "opd/off_policy_share": "share of rollouts whose response is the data set's; reward and reverse KL leave them out, "
    "and are not logged where there are no others",
    "opd/gated_share": "share of response tokens where the extra forward KL applies",
    "opd/student_topk_mass": "student probability on its own top-k",
    "opd/teacher_mass_at_student_topk": "teacher probability on the student's top-k",
    "opd/overlap_ratio": "share of the student's top-k that is in the teacher's (where both are read)",
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
