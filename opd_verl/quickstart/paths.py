"""Names the files of a quickstart run."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Files of a run. Models and data lie under `root` (`<out>/seed<N>`) for all recipes, the rest under its recipe."""

    root: Path
    recipe: str = ""
    """Folder of one recipe's run below `root`."""

    @property
    def run(self) -> Path:
        """Folder of one run of `main_ppo`."""
        return self.root / self.recipe

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that both models share."""
        return self.root / "tokenizer"

    @property
    def teacher(self) -> Path:
        """The trained teacher, as a Hugging Face folder."""
        return self.root / "teacher"

    @property
    def student(self) -> Path:
        """The student before distillation."""
        return self.root / "student"

    @property
    def data(self) -> Path:
        """`train.parquet` and `heldout.parquet`."""
        return self.root / "data"

    @property
    def metrics(self) -> Path:
        """Metrics by verl's `file` logger, a JSON object per step."""
        return self.run / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Log of verl, Ray and vLLM."""
        return self.run / "main_ppo.log"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints: verl's `trainer.default_local_dir`."""
        return self.run / "checkpoints"

    def distilled(self, step: int) -> Path:
        """Returns the Hugging Face folder of the student after `step` steps."""
        return self.checkpoints / f"global_step_{step}" / "actor" / "huggingface"

    @property
    def table(self) -> Path:
        """The result table as JSON."""
        return self.run / "result.json"

    @property
    def report(self) -> Path:
        """Folder of the report page and its charts."""
        return self.run / "report"

    @property
    def picture(self) -> Path:
        """Picture of the training curves."""
        return self.run / "curves.png"
