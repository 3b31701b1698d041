"""recipe=eopd on the real command: two and a half minutes, for which CI has no room. test_objectives.py has its term.

bash launch/test.sh tests/e2e/test_eopd.py
"""

import pytest
from conftest import CONDITIONAL_NAMES, SAMPLED, Run, change, new_metrics

from opd_verl.metrics.names import METRICS

pytestmark = pytest.mark.by_hand


def test_eopd(main_ppo: Run) -> None:
    """A tau that splits this short-trained teacher's tokens: both of EOPD's terms fall. The mean of one step's sampled
    r_t is known to 10%: hence 8 updates per step, and means over 4 steps.
    """
    tau = ("opd.forward_kl.tau=0.3", "opd.tokens.truncated=mask", "opd.tokens.masks=[depth_window]")
    steps = main_ppo(
        "eopd",
        "eopd",
        11,
        *SAMPLED,
        *tau,
        "opd.tokens.first_position=1",
        "data.train_batch_size=128",
        "trainer.save_freq=-1",
    )
    assert -change(steps, "opd/reverse_kl", over=4) > 0.02 and -change(steps, "actor/opd/forward_kl", over=4) > 0.02
    assert all(0.0 < step["opd/gated_share"] < 1.0 for step in steps)
    assert all(0.9 < step["opd/kept_share"] < 1.0 for step in steps), "all but every rollout's first token"
    assert set(new_metrics(steps)) <= set(METRICS) | CONDITIONAL_NAMES
