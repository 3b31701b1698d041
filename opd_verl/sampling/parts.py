"""A folder of finished shards: a killed command resumes with the missing shards."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.sampling.settings import differing
from opd_verl.utils.files import write_json, write_table

REQUESTS = "requests.parquet"
"""File beside the shards: a row for each request that the shards answer."""


@dataclass(frozen=True)
class ShardFolder:
    """A folder with `settings.json` and with `shard-00000.parquet` and so on, `count` shards when it is complete.

    `settings.json` says how the shards were made; `open` keeps shards of different settings in different folders.
    """

    folder: Path
    count: int

    def path(self, index: int) -> Path:
        """The file of one shard."""
        return self.folder / f"shard-{index:05d}.parquet"

    def open(self, settings: Mapping[str, object]) -> None:
        """Prepares the folder for these settings. Renames a folder of other settings, with a message."""
        kept = self.folder / "settings.json"
        # Through JSON, so that tuples and integer keys compare equal to the settings read back.
        settings = json.loads(json.dumps(settings))
        earlier = json.loads(kept.read_text()) if kept.exists() else None
        if earlier is not None and earlier != settings:
            aside = self._free_name()
            self.folder.rename(aside)
            changed = ", ".join(differing(earlier, settings))
            print(f"{self.folder} has other settings ({changed}): it is renamed to {aside.name}, and a new one begins",
                  file=sys.stderr, flush=True)  # fmt: skip
        if earlier != settings:
            write_json(kept, settings)

    def _free_name(self) -> Path:
        taken = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.old{taken}")).exists():
            taken += 1
        return aside

    def missing(self) -> list[int]:
        """Numbers of the shards that do not exist yet."""
        return [index for index in range(self.count) if not self.path(index).exists()]

    def write(self, index: int, table: pa.Table) -> None:
        """Saves one shard. The file appears whole or not at all, so every existing shard is finished."""
        write_table(self.path(index), table)

    def read(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads one finished shard: all columns, or the named ones."""
        return pq.read_table(self.path(index), columns=None if columns is None else list(columns))
