"""Replicas that answer from a table, in place of TeacherActor. No torch: a process of theirs starts in half a second.

For what the client makes of answers, of silence and of deaths. The tables are the wire's bytes, by the request's key.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Table = Mapping[str, bytes | str]


class CannedReplica:
    """Answers from `first_life` as long as it starts before `marker` exists; None: says nothing for ten minutes."""

    def __init__(self, answers: Table, first_life: Table | None, marker: str) -> None:
        self.answers = answers if os.path.exists(marker) else first_life

    def ping(self) -> int:
        return os.getpid()

    def stats(self) -> dict[str, float]:
        return {}

    def collect(self, requests: Sequence[Sequence[Any]], *_: Any) -> list[bytes | str]:
        if self.answers is None:
            time.sleep(600)
            raise AssertionError("nobody ended this replica")
        return [self.answers[request[0]] for request in requests]


class FragileReplica(CannedReplica):
    """Dies in its first two calls, one of them in its second life; `folder` holds a file for each call."""

    def __init__(self, answers: Table, folder: str) -> None:
        super().__init__(answers, None, folder)
        self.folder = Path(folder)

    def collect(self, requests: Sequence[Sequence[Any]], *_: Any) -> list[bytes | str]:
        calls = len(list(self.folder.iterdir()))
        (self.folder / str(calls)).touch()
        if calls < 2:
            os._exit(1)
        return super().collect(requests)
