"""Every metric that opd_verl adds to verl's, documented once. `python -m opd_verl.metrics.names` prints the list."""

METRICS: dict[str, str] = {
    "opd/reward_mean": "mean r_t, the sum of the reward hooks, over response tokens; nats, rises towards 0",
    "opd/reward_min": "smallest r_t of a response token; nats",
    "opd/reverse_kl": "mean log p_old(y) - log q(y) over response tokens: the sampled reverse KL; nats, falls to 0",
    "opd/student_entropy": "mean full-vocabulary entropy of the student over response tokens; nats",
    "opd/teacher_entropy": "mean full-vocabulary entropy of the teacher at the same positions; nats",
    "opd/teacher_missing_share": "share of response tokens without a valid teacher score; they are masked, never 0.0",
    "opd/teacher_ready_share": "share of the step's rollouts that the teacher had scored before the trainer asked",
    "opd/student_topk_mass": "student probability on its own top-k (only where a top-k is read)",
    "opd/teacher_mass_at_student_topk": "teacher probability on the student's top-k (only where a top-k is read)",
    "actor/opd/topk_reverse_kl": "the exact objective as trained on: mean KL on the student's top-k, both sides "
    "renormalised; nats per token, mean over the step's mini-batches",
    "timing_s/teacher": "seconds that the trainer waited for teacher scores after the log-prob pass "
    "(part of timing_s/old_log_prob)",
    "timing_s/teacher_busy": "seconds of the teacher's forward passes, summed over replicas, wherever they were hidden",
}

if __name__ == "__main__":
    for name, meaning in METRICS.items():
        print(f"{name:36} {meaning}")
