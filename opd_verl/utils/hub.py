"""Tells whether this process can load a model by its Hugging Face hub name. Nothing is downloaded."""

from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from opd_verl.utils.network import unreachable


def looks_local(path: str) -> bool:
    """Whether `path` cannot be a hub name (`owner/name`)."""
    return not path or path.startswith((".", "~", "/")) or path.count("/") != 1


def cached_folder(name: str) -> str | None:
    """The folder of a hub model in the local cache; None unless its config is there."""
    config = None if looks_local(name) else try_to_load_from_cache(name, "config.json")
    return str(Path(config).parent) if isinstance(config, str) else None


def cached_commit(name: str) -> str | None:
    """The commit of a hub model in the local cache; None where it is not cached."""
    folder = cached_folder(name)
    return Path(folder).name if folder else None


def why_unloadable(name: str) -> str | None:
    """The reason why a hub model cannot be loaded here; None where it is cached or the hub answers."""
    if cached_commit(name) is not None:
        return None
    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    return offline and f"not in the local hub cache, and {offline}"
