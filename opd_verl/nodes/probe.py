"""The Ray actor that looks at one node. It takes no resources, so that it also starts beside a running job."""

import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opd_verl.nodes.machine import look
from opd_verl.nodes.records import Checklist, Machine

CONNECT_SECONDS = 3.0


class NodeProbe:
    """A process on one node that answers questions about it."""

    def __init__(self) -> None:
        self.listener: socket.socket | None = None
        self.written: Path | None = None

    def look(self, checklist: Checklist, ray_folder: str) -> Machine:
        """The record of this machine."""
        return look(checklist, ray_folder)

    def now(self) -> float:
        """This machine's clock, seconds."""
        return time.time()

    def exchange(self, folder: str, theirs: str, own: str) -> str | None:
        """Leaves the file `own` in the folder. Returns the problem if the folder, or the driver's file, is missing.

        Both names are new each time, so that a network file system cannot answer from its cache.
        """
        local = Path(folder).absolute()
        if not (local / theirs).is_file():
            return f"{local} is not the driver's folder" if local.is_dir() else f"no folder {local}"
        try:
            (local / own).touch()
        except OSError as error:
            return f"cannot write to {local}: {error.strerror}"
        self.written = local / own
        return None

    def clean(self) -> None:
        """Removes the file that `exchange` left."""
        if self.written is not None:
            self.written.unlink(missing_ok=True)

    def listen(self) -> int:
        """A free port, on which this process listens. torch's rendezvous and verl's workers take such ports too."""
        self.listener = socket.create_server(("", 0))
        return self.listener.getsockname()[1]

    def connect(self, targets: Mapping[str, tuple[str, int]]) -> list[str]:
        """The names of the targets (address, port) that no connection opens to."""
        with ThreadPoolExecutor(max(len(targets), 1)) as threads:
            opened = list(threads.map(opens, targets.values()))
        return [name for name, is_open in zip(targets, opened, strict=True) if not is_open]


def opens(target: tuple[str, int]) -> bool:
    """Whether a TCP connection opens in time."""
    try:
        socket.create_connection(target, CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def partners(names: Sequence[str], most: int) -> dict[str, list[str]]:
    """The nodes that each node connects to: all others, or beyond `most` nodes only the next node and the first."""
    if len(names) <= most:
        return {name: [other for other in names if other != name] for name in names}
    following = [*names[1:], names[0]]
    return {name: sorted({after, names[0]} - {name}) for name, after in zip(names, following, strict=True)}
