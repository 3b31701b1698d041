"""Whether a server answers, found out in two seconds instead of a library's many retries."""

import socket
from urllib.parse import urlparse

CONNECT_SECONDS = 2.0


def unreachable(server: str) -> str | None:
    """What keeps a TCP connection to the server (a URL) from opening, or None."""
    url = urlparse(server)
    host, port = url.hostname or server, url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        return f"cannot reach {host}: {error}"
    return None
