"""Fingerprint of a stage: a digest of everything that its result depends on. Equal stages are trained once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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


def stage_fingerprint(config: DictConfig, identities: Mapping[str, object]) -> str:
    """Digests a composed config and the identities of its models and files, whose paths are stand-ins there."""
    # Unresolved: the keys that an interpolation reads are digested too, and some resolvers read this machine.
    plain = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    assert isinstance(plain, dict)
    for key in VOLATILE:
        drop(plain, key.split("."))
    return json_digest({"config": plain, **identities})[:LENGTH]


def drop(config: object, path: Sequence[str]) -> None:
    """Removes a nested key, if it is there."""
    for part in path[:-1]:
        config = config.get(part) if isinstance(config, dict) else None
    if isinstance(config, dict):
        config.pop(path[-1], None)


def model_identity(path: str) -> object:
    """Returns the digests of a folder's files (its name does not count), or a hub model's name and commit."""
    fingerprint = model_fingerprint(path)
    return fingerprint.get("files") or fingerprint


def file_identity(path: str) -> str:
    """Returns the digest of a file's content."""
    return digest(Path(path).expanduser())
