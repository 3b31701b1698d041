"""Where a stage keeps its files, and how it is known to be finished."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opd_verl.pipeline.commands import is_sft
from opd_verl.tracking.checkpoints import STEP, latest_step
from opd_verl.tracking.metrics_file import merged
from opd_verl.utils.files import write_json


@dataclass(frozen=True)
class Finished:
    """What a stage leaves behind."""

    model: str
    """The trained model, a Hugging Face folder."""
    steps: int
    """Training steps it took in all."""
    seconds: float
    """Wall time of all attempts together."""


@dataclass(frozen=True)
class StageFolder:
    """`<out>/stages/<name>-<fingerprint>`: another config gets another folder, and the old result stays."""

    root: Path
    recipe: str

    @property
    def checkpoints(self) -> Path:
        """verl's `trainer.default_local_dir`."""
        return self.root / "checkpoints"

    @property
    def log(self) -> Path:
        """Everything that verl, Ray and vLLM print, of all attempts."""
        return self.root / "train.log"

    @property
    def done(self) -> Path:
        """There once the stage is finished."""
        return self.root / "done.json"

    @property
    def attempts(self) -> list[Path]:
        """verl's metrics, a file for each attempt, oldest first."""
        return sorted(self.root.glob("metrics-*.jsonl"))

    def next_attempt(self) -> Path:
        """A metrics file that is not there yet."""
        return self.root / f"metrics-{len(self.attempts):03d}.jsonl"

    def latest_step(self) -> int:
        """The step of the newest whole checkpoint; 0: none."""
        return latest_step(self.checkpoints)

    def model(self, step: int) -> Path:
        """The Hugging Face folder of a checkpoint."""
        return self.checkpoints / f"{STEP}{step}" / ("" if is_sft(self.recipe) else "actor") / "huggingface"

    def finished(self) -> Finished | None:
        """The result, if there is one."""
        return Finished(**json.loads(self.done.read_text())) if self.done.exists() else None

    def finish(self, seconds: float) -> Finished:
        """Writes down that the stage is done.

        Raises:
            SystemExit: the training left no model.
        """
        step = self.latest_step()
        if not (self.model(step) / "config.json").exists():
            raise SystemExit(f"the training left no model in {self.checkpoints}; its log: {self.log}")
        found = Finished(str(self.model(step).absolute()), step, seconds)
        write_json(self.done, asdict(found))
        return found

    def steps(self) -> list[dict[str, Any]]:
        """The metrics of every step, the last attempt's where several made one."""
        return merged(self.attempts)
