"""The Ray actor that looks at one node; it takes no resources, so that it starts beside a running job too."""

import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opd_verl.nodes.machine import look
from opd_verl.nodes.records import Machine, Wanted

CONNECT_SECONDS = 3.0


class NodeProbe:
    """Answers for the node that it was placed on."""

    def __init__(self) -> None:
        self.listener: socket.socket | None = None
        self.written: Path | None = None

    def look(self, wanted: Wanted, ray_folder: str) -> Machine:
        """What this machine is and has."""
        return look(wanted, ray_folder)

    def now(self) -> float:
        """This machine's clock, seconds."""
        return time.time()

    def exchange(self, folder: str, theirs: str, own: str) -> str | None:
        """Leaves the file `own` in the folder; what is wrong if the folder, or the driver's file, is not there.

        Nobody has asked for either name before, so that a network file system cannot answer from its cache.
        """
        there = Path(folder).absolute()
        if not (there / theirs).is_file():
            return f"{there} is not the driver's folder" if there.is_dir() else f"no folder {there}"
        try:
            (there / own).touch()
        except OSError as error:
            return f"cannot write to {there}: {error.strerror}"
        self.written = there / own
        return None

    def clean(self) -> None:
        """Takes away what `exchange` left."""
        if self.written is not None:
            self.written.unlink(missing_ok=True)

    def listen(self) -> int:
        """A port that any other node should reach: a free one, as torch's rendezvous and verl's workers take."""
        self.listener = socket.create_server(("", 0))
        return self.listener.getsockname()[1]

    def connect(self, targets: Mapping[str, tuple[str, int]]) -> list[str]:
        """The names of those (address, port) that no connection opens to."""
        with ThreadPoolExecutor(max(len(targets), 1)) as threads:
            opened = list(threads.map(opens, targets.values()))
        return [name for name, there in zip(targets, opened, strict=True) if not there]


def opens(target: tuple[str, int]) -> bool:
    """Whether a TCP connection opens in time."""
    try:
        socket.create_connection(target, CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def partners(names: Sequence[str], most: int) -> dict[str, list[str]]:
    """Whom each node connects to: all others, and beyond `most` nodes the next one and the first."""
    if len(names) <= most:
        return {name: [other for other in names if other != name] for name in names}
    following = [*names[1:], names[0]]
    return {name: sorted({after, names[0]} - {name}) for name, after in zip(names, following, strict=True)}
