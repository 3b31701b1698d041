"""Live measurements in the trainer: metrics of every step, and warnings that survive a resume."""

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
        """step: the step of the checkpoint that the run continues from; 0 for a new run."""
        self.low_entropy = opd.tokens.low_entropy
        self.buckets = depth_buckets(config.data.max_response_length, opd.diagnostics.depth_buckets)
        # The watch compares with the steps before: after a resume it reads them back from metrics.jsonl.
        earlier = logged(Path(config.trainer.default_local_dir)) if step else []
        self.watch = Watch(metrics for metrics in earlier if metrics["step"] <= step)

    def update(self, seen: Observed, metrics: Mapping[str, float]) -> dict[str, float]:
        """The step's measurements and alerts; `metrics` are the step's other metrics, which some alerts read."""
        begin = time.perf_counter()
        measured = live_metrics(seen, self.buckets, self.low_entropy)
        for name, text in self.watch.update({**metrics, **measured}).items():
            logger.warning("%s: %s", name, text)
        return measured | self.watch.metrics() | {"timing_s/diagnostics": time.perf_counter() - begin}
