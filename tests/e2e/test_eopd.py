"""recipe=eopd on the real command: two and a half minutes, for which CI has no room.

bash launch/test.sh tests/e2e/test_eopd.py
"""

from pathlib import Path

import pytest
from e2e_runs import CONDITIONAL_NAMES, SAMPLED, Run, exact_reverse_kl, new_metrics

from opd_verl.metrics.names import METRICS
from opd_verl.quickstart.paths import Paths

pytestmark = pytest.mark.by_hand


def test_eopd(main_ppo: Run, models: Paths, tmp_path: Path) -> None:
    """The clipped surrogate and the gated forward KL together bring the student closer.

    This teacher is sure of its task: its entropy exceeds 0.01 nats at a third of the student's tokens. In a simulation
    of the loop (three pairs of models) the exact reverse KL falls to 0.26 to 0.42 of its start, and the mean forward KL
    of the last four steps to 0.43, 0.72 and 1.05 of the first four's: a few tokens far from the teacher decide it.
    """
    tau = ("opd.forward_kl.tau=0.01", "opd.tokens.truncated=mask", "opd.tokens.masks=[depth_window]")
    steps = main_ppo(
        "eopd",
        "eopd",
        11,
        *SAMPLED,
        *tau,
        "opd.tokens.first_position=1",
        "data.train_batch_size=128",
        "trainer.save_freq=11",
        f"trainer.default_local_dir={tmp_path}",
    )
    trained = tmp_path / "global_step_11" / "actor" / "huggingface"
    assert exact_reverse_kl(trained, models) < 0.85 * exact_reverse_kl(models.student, models)
    assert all(step["actor/opd/forward_kl"] > 0.0 for step in steps)
    assert all(0.0 < step["opd/gated_share"] < 1.0 for step in steps)
    assert all(0.9 < step["opd/kept_share"] < 1.0 for step in steps), "the depth window leaves out every first token"
    assert set(new_metrics(steps)) <= set(METRICS) | CONDITIONAL_NAMES
