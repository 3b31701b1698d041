"""The models and data files of one machine, for a comparison with the driver's machine."""

from pathlib import Path

from opd_verl.nodes.records import ModelFiles
from opd_verl.utils.files import digest
from opd_verl.utils.hub import cached_commit, looks_local, why_unloadable

COMPARED = ("*.safetensors", "*.bin", "tokenizer*")
"""Files of a model's folder that must have equal sizes on a node and on the driver's machine."""


def model_files(path: str) -> ModelFiles:
    """A folder's files, or the cached commit of a hub name; `problem` says why the model cannot be loaded."""
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
    """Bytes of a data file or of a folder of files; None where there is none."""
    data = Path(path).expanduser()
    if data.is_dir():
        return sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
    return data.stat().st_size if data.is_file() else None
