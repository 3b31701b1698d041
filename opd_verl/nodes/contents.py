"""Models and data files as one machine has them, to be compared with the driver's."""

from pathlib import Path

from opd_verl.nodes.records import ModelFiles
from opd_verl.utils.files import digest
from opd_verl.utils.hub import cached_commit, looks_local, why_unloadable

COMPARED = ("*.safetensors", "*.bin", "tokenizer*")
"""Files of a model's folder whose sizes must be the driver's."""


def model_files(path: str) -> ModelFiles:
    """A folder's files, or what is known of a hub name; `problem` says why there is nothing to load."""
    folder = Path(path)
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            return ModelFiles(problem=f"no config.json in {folder.absolute()}")
        sizes = {file.name: file.stat().st_size for pattern in COMPARED for file in sorted(folder.glob(pattern))}
        return ModelFiles(config=digest(config), sizes=sizes)
    if looks_local(path):
        return ModelFiles(problem=f"no such model folder ({folder.absolute()})")
    problem = why_unloadable(path)
    return ModelFiles(problem=problem and f"no such folder, {problem}", commit=cached_commit(path))


def file_size(path: str) -> int | None:
    """Bytes of a data file or folder of files; None where it is not there."""
    there = Path(path).expanduser()
    if there.is_dir():
        return sum(file.stat().st_size for file in there.rglob("*") if file.is_file())
    return there.stat().st_size if there.is_file() else None
