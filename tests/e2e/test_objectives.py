"""Several objectives at once, and the live student as teacher, on the real command."""

from pathlib import Path

import pytest
from e2e_runs import CONDITIONAL_NAMES, SMALL, Run, dump, exact_reverse_kl, new_metrics

from opd_verl.config.overrides import hydra_value
from opd_verl.metrics.names import METRICS
from opd_verl.quickstart.paths import Paths

GRADED = Path(__file__).with_name("graded_reward.py")


@pytest.mark.by_hand
def test_mixed_with_a_task_reward_on_both_sides_top_tokens(main_ppo: Run, models: Paths, tmp_path: Path) -> None:
    """GRPO's advantage through the clipped surrogate, an exact divergence on both top-k and a gated forward KL.

    GRADED gives wrong answers a reward too. The outcome is measured exactly, as in test_main_ppo.py.
    """
    steps = main_ppo(
        "mixed", "opd_grpo", 8, "data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.rollout.n=4", "actor_rollout_ref.actor.optim.lr=6e-4",
        "opd.objective.support=union", "opd.objective.k=16",
        "opd.objective.tail=bucket", "opd.tokens.weights=[correctness]", "opd.tokens.correct=0.5",
        "opd.forward_kl.placement=gated", "opd.forward_kl.tau=0.01",
        f"reward.custom_reward_function.path={GRADED}", "trainer.save_freq=8", f"trainer.default_local_dir={tmp_path}",
    )  # fmt: skip
    trained = tmp_path / "global_step_8" / "actor" / "huggingface"
    assert exact_reverse_kl(trained, models) < 0.85 * exact_reverse_kl(models.student, models)
    assert all(step["actor/opd/divergence"] > 0.0 and step["actor/opd/forward_kl"] > 0.0 for step in steps)
    assert all(0.0 < step["opd/gated_share"] < 1.0 for step in steps)
    assert all(step["opd/support_size"] > 16 for step in steps), "the union of two top 16"
    print("actor/pg_loss:", dump(steps, "actor/pg_loss"))  # 0 in a step where no group's rewards differ
    assert sum(step["actor/pg_loss"] != 0.0 for step in steps) > len(steps) // 2
    assert set(new_metrics(steps)) <= set(METRICS) | CONDITIONAL_NAMES


@pytest.mark.by_hand
def test_the_live_student_as_teacher_moves_with_the_student(main_ppo: Run, models: Paths, tmp_path: Path) -> None:
    """A task reward moves the student; the teacher takes its weights, and r_t stays 0 up to float32's rounding.

    The empty context sends the teacher's prompts another way and leaves them equal to the student's.
    """
    common = [
        *SMALL, "actor_rollout_ref.actor.optim.lr=1e-3", "data.train_batch_size=16", "actor_rollout_ref.rollout.n=2",
        f"opd.teacher.path={hydra_value(models.student)}",
        f"reward.custom_reward_function.path={GRADED}", f"trainer.default_local_dir={tmp_path}",
        "opd.plugins=[hints]", "opd.context.max_tokens=64",
    ]  # fmt: skip
    live = main_ppo(
        "live", "opd_grpo", 3, *common, "opd.teacher.sync_every=1", "opd.context.name=nothing", "trainer.save_freq=2"
    )
    print(dump(live, "opd/reverse_kl"))
    assert all(abs(step["opd/reverse_kl"]) < 1e-5 and step["actor/grad_norm"] > 0 for step in live)
    assert all(step["opd/teacher_missing_share"] == 0.0 for step in live)
    assert {path.name for path in (tmp_path / "opd_teacher").iterdir()} == {"current", "global_step_2", "global_step_3"}
