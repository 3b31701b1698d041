"""The driver's file in the folder of the checkpoints, which the nodes look for; it leaves no trace."""

from pathlib import Path
from types import TracebackType


class Folder:
    """A context in which the folder exists and holds the driver's file; afterwards the folder is as it was before."""

    def __init__(self, path: str, name: str) -> None:
        self.path = Path(path).absolute()
        self.name = name
        self.problem: str | None = None
        """Why the driver cannot write there."""
        self.made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]

    def __enter__(self) -> "Folder":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / self.name).touch()
        except OSError as error:
            self.problem = f"cannot write to {self.path}: {error.strerror}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.path.is_dir():
            for file in self.path.glob(f"{self.name}*"):
                file.unlink(missing_ok=True)
        for folder in self.made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def lacks(self, name: str) -> str | None:
        """The problem if a node's file did not arrive here; None if it did."""
        return None if (self.path / name).is_file() else f"files that it writes to {self.path} do not arrive here"
