"""Weights & Biases without a network: the run is written to disk instead of stopping at a login prompt."""

import netrc
from collections.abc import Mapping
from urllib.parse import urlparse

from opd_verl.utils.network import unreachable

DEFAULT_SERVER = "https://api.wandb.ai"


def why_offline(environ: Mapping[str, str]) -> str | None:
    """What keeps wandb from logging in to its server, or None."""
    if "WANDB_API_KEY" not in environ and not has_netrc_entry(server_host(environ)):
        return "no WANDB_API_KEY and no entry in ~/.netrc"
    return unreachable(server(environ))


def server(environ: Mapping[str, str]) -> str:
    """wandb's server, as a URL."""
    return environ.get("WANDB_BASE_URL", DEFAULT_SERVER)


def server_host(environ: Mapping[str, str]) -> str:
    """The host of wandb's server, by which ~/.netrc knows it."""
    return urlparse(server(environ)).hostname or server(environ)


def has_netrc_entry(host: str) -> bool:
    """Whether `wandb login` has left a key for this host."""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
