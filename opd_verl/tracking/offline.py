"""Weights & Biases without a network: the run writes to disk and does not stop at a login prompt."""

import netrc
from collections.abc import Mapping
from urllib.parse import urlparse

from opd_verl.utils.network import unreachable

DEFAULT_SERVER = "https://api.wandb.ai"


def why_offline(environ: Mapping[str, str]) -> str | None:
    """The reason why wandb cannot log in to its server; None if it can."""
    if "WANDB_API_KEY" not in environ and not has_netrc_entry(server_host(environ)):
        return "no WANDB_API_KEY and no entry in ~/.netrc"
    return unreachable(server(environ))


def server(environ: Mapping[str, str]) -> str:
    """URL of wandb's server."""
    return environ.get("WANDB_BASE_URL", DEFAULT_SERVER)


def server_host(environ: Mapping[str, str]) -> str:
    """Host of wandb's server: the name under which ~/.netrc keeps its key."""
    return urlparse(server(environ)).hostname or server(environ)


def has_netrc_entry(host: str) -> bool:
    """Whether `wandb login` has left a key for this host."""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
