"""Weights & Biases without a network: the run is written to disk instead of stopping at a login prompt."""

import netrc
from collections.abc import Mapping
from urllib.parse import urlparse

from opd_verl.network import unreachable

DEFAULT_SERVER = "https://api.wandb.ai"


def why_offline(environ: Mapping[str, str]) -> str | None:
    """What keeps wandb from logging in to its server, or None."""
    server = environ.get("WANDB_BASE_URL", DEFAULT_SERVER)
    host = urlparse(server).hostname or server
    if "WANDB_API_KEY" not in environ and not has_netrc_entry(host):
        return "no WANDB_API_KEY and no entry in ~/.netrc"
    return unreachable(server)


def has_netrc_entry(host: str) -> bool:
    """Whether `wandb login` has left a key for this host."""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
