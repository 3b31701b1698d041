"""A folder of finished pieces of work: whoever is killed goes on where they were."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from opd_verl.sampling.settings import differing
from opd_verl.utils.files import write_json, write_table


@dataclass(frozen=True)
class Parts:
    """`settings.json`, and `shard-00000.parquet` and so on, one for each of `count` pieces.

    The settings say what the pieces are made with; `open` never lets those of other settings be mixed with them.
    """

    folder: Path
    count: int

    def path(self, index: int) -> Path:
        """The file of one piece."""
        return self.folder / f"shard-{index:05d}.parquet"

    def open(self, settings: dict[str, Any]) -> None:
        """Makes the folder ready for these settings; one made with other settings is renamed, and a message says so."""
        kept, settings = self.folder / "settings.json", json.loads(json.dumps(settings))
        found = json.loads(kept.read_text()) if kept.exists() else None
        if found is not None and found != settings:
            aside = self._free_name()
            self.folder.rename(aside)
            changed = ", ".join(differing(found, settings))
            print(f"{self.folder} was made with other settings ({changed}): now {aside.name}, a fresh one is begun",
                  file=sys.stderr, flush=True)  # fmt: skip
        if found != settings:
            write_json(kept, settings)

    def _free_name(self) -> Path:
        taken = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.old{taken}")).exists():
            taken += 1
        return aside

    def missing(self) -> list[int]:
        """The pieces that are still to be made."""
        return [index for index in range(self.count) if not self.path(index).exists()]

    def write(self, index: int, table: pa.Table) -> None:
        """Saves one piece."""
        write_table(self.path(index), table)

    def read(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One finished piece; these columns alone, if any are named."""
        return pq.read_table(self.path(index), columns=None if columns is None else list(columns))
