"""recipe=eopd on the real command: two and a half minutes, for which CI has no room.

bash launch/test.sh tests/e2e/test_eopd.py
"""

from pathlib import Path

import pytest
from e2e_runs import CONDITIONAL_NAMES, SAMPLED, Run, change, exact_reverse_kl, new_metrics

from opd_verl.metrics.names import METRICS
from opd_verl.quickstart.paths import Paths

pytestmark = pytest.mark.by_hand


def test_eopd(main_ppo: Run, models: Paths, tmp_path: Path) -> None:
    """Both of EOPD's terms fall.

    This teacher is sure of its task: its entropy exceeds 0.1 nats at 2% of the student's tokens, on which the student
    has gone astray. EOPD-MEASURED
    """
    tau = ("opd.forward_kl.tau=0.1", "opd.tokens.truncated=mask", "opd.tokens.masks=[depth_window]")
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
    assert exact_reverse_kl(trained, models) < 0.8 * exact_reverse_kl(models.student, models)
    assert -change(steps, "actor/opd/forward_kl", over=4) > 0.02
    assert all(0.0 < step["opd/gated_share"] < 1.0 for step in steps)
    assert all(0.9 < step["opd/kept_share"] < 1.0 for step in steps), "the depth window leaves out every first token"
    assert set(new_metrics(steps)) <= set(METRICS) | CONDITIONAL_NAMES
