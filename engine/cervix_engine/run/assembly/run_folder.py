"""The hidden folder beside a table, where a run on its way to it keeps its files, each durable before it counts."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cervix_engine.files import fsync_file, fsync_folder, output_errors, sha256_file
from cervix_engine.run.assembly.base import LISTING
from cervix_engine.run.journal import Shard
from cervix_engine.table.formats import table_suffix

JOURNAL = "journal.jsonl"
RECORD = "record.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run; whatever it does raises OutputError where the file system refuses it.

    Attributes:
        table: the one that its run is on the way to.
    """

    table: Path

    @property
    def path(self) -> Path:
        return self.table.with_name(f".{self.table.name}.cervix")

    @property
    def journal(self) -> Path:
        return self.path / JOURNAL

    @property
    def published(self) -> Path:
        """The assembled table in it, in the format in which it is published."""
        return self.path / f"table{table_suffix(self.table)}"

    @property
    def has_listing(self) -> bool:
        return (self.path / LISTING).exists()

    def make(self) -> None:
        """Make it anew; whatever was in it is discarded."""
        self.remove(journal_first=True)
        with output_errors(f"cannot write in {self.path.parent}"):
            self.path.mkdir()

    def remove(self, *, journal_first: bool) -> None:
        """Remove it, the journal before or behind all else: what a kill leaves, the next start understands."""
        with output_errors(f"cannot clear {self.path.name}"):
            if not self.path.is_dir():
                return
            for file in sorted(self.path.iterdir(), key=lambda file: (file.name == JOURNAL) != journal_first):
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
                if file.name == JOURNAL:
                    fsync_folder(self.path)
            self.path.rmdir()
            fsync_folder(self.path.parent)

    def remove_unless_begun(self) -> None:
        """Remove it where its run ended before its journal, and so has nothing to go on with."""
        with output_errors(f"cannot clear {self.path.name}"):
            begun = self.journal.exists()
        if not begun:
            self.remove(journal_first=True)

    def holds(self, shard: Shard) -> bool:
        """Whether a shard is there as it was recorded."""
        file = self.path / shard.file
        with output_errors("cannot check the partial run's shards"):
            return file.is_file() and sha256_file(file) == shard.sha256

    def write(self, shard: Shard, data: bytes) -> None:
        """Write a shard's bytes."""
        file = self.path / shard.file
        with output_errors("cannot write a shard"):
            file.write_bytes(data)
            fsync_file(file)
            fsync_folder(self.path)

    def name(self, shard: Shard, written: str) -> None:
        """Give a shard that lies here under another name its own."""
        with output_errors("cannot name a shard"):
            (self.path / written).replace(self.path / shard.file)
            fsync_folder(self.path)

    def lines(self, shards: Iterable[Shard]) -> Iterator[bytes]:
        """The rows of these shards, in their order."""
        for shard in sorted(shards, key=lambda item: item.first_batch):
            with (self.path / shard.file).open("rb") as file:
                yield from file
