"""The trainer's side of the live measurements: a step's metrics, and warnings that outlive a resume."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from opd_verl.config.opd import OpdConfig
from opd_verl.metrics.alerts import Watch
from opd_verl.metrics.depth import depth_buckets
from opd_verl.metrics.live import live_metrics
from opd_verl.metrics.measurements import Observed
from opd_verl.tracking.metrics_log import logged

logger = logging.getLogger(__name__)


class Diagnostics:
    """Measures every step and watches for the signs of a run that goes wrong."""

    def __init__(self, opd: OpdConfig, config: DictConfig, step: int) -> None:
        """step: the one that the run goes on from; 0: a new run."""
        self.low_entropy = opd.tokens.low_entropy
        self.buckets = depth_buckets(config.data.max_response_length, opd.diagnostics.depth_buckets)
        earlier = logged(Path(config.trainer.default_local_dir)) if step else []
        self.watch = Watch(one for one in earlier if one["step"] <= step)

    def update(self, seen: Observed, metrics: Mapping[str, float]) -> dict[str, float]:
        """The step's measurements and alerts; metrics: what the step has already."""
        begin = time.perf_counter()
        found = live_metrics(seen, self.buckets, self.low_entropy)
        for name, text in self.watch.update({**metrics, **found}).items():
            logger.warning("%s: %s", name, text)
        found |= self.watch.metrics()
        return found | {"timing_s/diagnostics": time.perf_counter() - begin}
