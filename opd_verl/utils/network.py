"""Tells within two seconds whether a server answers, without a library's many retries."""

import socket
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

CONNECT_SECONDS = 2.0


def unreachable(server: str) -> str | None:
    """The reason why no TCP connection to the server (a URL) or its proxy opens; None where a connection opens."""
    url = urlparse(server)
    proxy = getproxies().get(url.scheme)
    if proxy and not proxy_bypass(url.hostname or server):
        url = urlparse(proxy if "://" in proxy else f"http://{proxy}")
    host, port = url.hostname or server, url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        return f"cannot reach {host}: {error}"
    return None
