"""Where one quickstart run keeps its files."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """What is prepared lies under `root`, `<out>/seed<N>`, for all recipes; what a run leaves, under its recipe."""

    root: Path
    recipe: str = ""
    """Folder of one recipe's run below `root`."""

    @property
    def run(self) -> Path:
        """What one run of `main_ppo` leaves."""
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
        """What verl's `file` logger writes, a JSON object a step."""
        return self.run / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Everything that verl, Ray and vLLM print."""
        return self.run / "main_ppo.log"

    @property
    def checkpoints(self) -> Path:
        """verl's `trainer.default_local_dir`."""
        return self.run / "checkpoints"

    def distilled(self, step: int) -> Path:
        """The student after `step` steps, as a Hugging Face folder."""
        return self.checkpoints / f"global_step_{step}" / "actor" / "huggingface"

    @property
    def table(self) -> Path:
        """The result table as JSON."""
        return self.run / "result.json"

    @property
    def report(self) -> Path:
        """The page about the run, with its charts beside it."""
        return self.run / "report"

    @property
    def picture(self) -> Path:
        """The curves."""
        return self.run / "curves.png"
