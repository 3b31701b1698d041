"""What a stage's result depends on, as one short name: equal names need no second training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from opd_verl.utils.files import digest, json_digest, model_fingerprint

VOLATILE = (
    "trainer.logger",
    "trainer.save_freq",
    "trainer.test_freq",
    "trainer.val_before_train",
    "trainer.project_name",
    "trainer.experiment_name",
    "trainer.default_local_dir",
    "trainer.max_actor_ckpt_to_keep",
    "opd.samples",
    "ray_kwargs",
    "transfer_queue",
)
"""Keys of verl's config that change no number of the trained model."""
LENGTH = 10


def stage_fingerprint(config: DictConfig, identities: Mapping[str, Any]) -> str:
    """Of a composed config whose models and files have stand-ins for names, and of what the stand-ins stand for."""
    plain: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    for key in VOLATILE:
        drop(plain, key.split("."))
    return json_digest({"config": plain, **identities})[:LENGTH]


def drop(config: dict[str, Any], path: Sequence[str]) -> None:
    """Removes a key, if it is there."""
    for part in path[:-1]:
        config = config.get(part) or {}
    config.pop(path[-1], None)


def model_identity(path: str) -> Any:
    """A folder's files, whatever its name; a hub model's name and commit."""
    found = model_fingerprint(path)
    return found.get("files") or found


def file_identity(path: str) -> str:
    """A file's content."""
    return digest(Path(path).expanduser())
