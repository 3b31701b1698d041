"""The folder of a stage: its files, its attempts, and the mark that it is finished."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from opd_verl.pipeline.commands import is_sft
from opd_verl.tracking.checkpoints import STEP, latest_step
from opd_verl.tracking.metrics_file import merged
from opd_verl.utils.files import write_json


@dataclass(frozen=True)
class FinishedStage:
    """The result of a finished stage."""

    model: str
    """Hugging Face folder of the trained model."""
    steps: int
    """Training steps of all attempts together."""
    seconds: float
    """Wall time of all attempts together."""


@dataclass(frozen=True)
class StageFolder:
    """`<out>/stages/<name>-<fingerprint>`: a changed config gets a new folder, and the old result stays."""

    root: Path
    recipe: str

    @property
    def checkpoints(self) -> Path:
        """Checkpoints: verl's `trainer.default_local_dir`."""
        return self.root / "checkpoints"

    @property
    def log(self) -> Path:
        """Log of verl, Ray and vLLM, of all attempts."""
        return self.root / "train.log"

    @property
    def done(self) -> Path:
        """Mark of a finished stage, with its result."""
        return self.root / "done.json"

    @property
    def attempts(self) -> list[Path]:
        """Metrics files that verl wrote, one per attempt, oldest first."""
        return sorted(self.root.glob("metrics-*.jsonl"))

    def next_attempt(self) -> Path:
        """Returns the metrics file of a new attempt: verl empties its metrics file at the start."""
        return self.root / f"metrics-{len(self.attempts):03d}.jsonl"

    def latest_step(self) -> int:
        """Returns the step of the newest whole checkpoint; 0: none."""
        return latest_step(self.checkpoints)

    def model(self, step: int) -> Path:
        """Returns the Hugging Face folder of a checkpoint."""
        return self.checkpoints / f"{STEP}{step}" / ("" if is_sft(self.recipe) else "actor") / "huggingface"

    def finished(self) -> FinishedStage | None:
        """Reads the result; None: the stage is not finished."""
        return FinishedStage(**json.loads(self.done.read_text())) if self.done.exists() else None

    def finish(self, seconds: float) -> FinishedStage:
        """Writes the result, which marks the stage as finished.

        Raises:
            SystemExit: the training left no model.
        """
        step = self.latest_step()
        if not (self.model(step) / "config.json").exists():
            raise SystemExit(f"the training left no model in {self.checkpoints}; its log: {self.log}")
        result = FinishedStage(str(self.model(step).absolute()), step, seconds)
        write_json(self.done, asdict(result))
        return result

    def steps(self) -> list[dict[str, float]]:
        """Reads the metrics of every step; for a step of several attempts the last attempt counts."""
        return merged(self.attempts)
