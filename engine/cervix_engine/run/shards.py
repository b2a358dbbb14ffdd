"""Rows on their way to the table: whole batches, gathered until a shard is full."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cervix_engine.drift.watch import DriftWatch, MeasuredTile
from cervix_engine.files import sha256_bytes
from cervix_engine.run.journal import Shard
from cervix_engine.run.stream.stream import BatchResult
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.tile import Prediction, TileFailure


@dataclass(frozen=True, slots=True)
class ShardSize:
    """When a shard is closed: at whichever comes first. A kill costs at most this much work."""

    tiles: int = 4096
    seconds: float = 30.0


class ShardWriter:
    """Gathers rows into shards; leaving the `with` block keeps what is complete, whatever the reason.

    Args:
        store: makes a shard's bytes durable.
        row_format: of the table.
        size: when a shard is full.
        watch: what measured tiles are compared with, if they are.
    """

    def __init__(
        self,
        store: Callable[[Shard, bytes], None],
        row_format: RowFormat,
        size: ShardSize,
        watch: DriftWatch | None = None,
    ) -> None:
        self._store = store
        self._format = row_format
        self._size = size
        self._watch = watch
        self._results: list[BatchResult] = []
        self._tiles = 0
        self._since = time.monotonic()

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, result: BatchResult) -> None:
        """Take the next batch. A gap, which a resumed run has, ends a shard."""
        if self._results and result.batch.index != self._results[-1].batch.index + 1:
            self.close_shard()
        self._results.append(result)
        self._tiles += len(result.outcomes)
        if self._tiles >= self._size.tiles or time.monotonic() - self._since >= self._size.seconds:
            self.close_shard()

    def __exit__(self, *exc_info: object) -> None:
        self.close_shard()

    def close_shard(self) -> None:
        """Store what was gathered; does nothing when there is nothing."""
        results, self._results, self._tiles, self._since = self._results, [], 0, time.monotonic()
        if results:
            self._store(*shard_of(results, self._format, self._watch))


def shard_of(results: list[BatchResult], row_format: RowFormat, watch: DriftWatch | None = None) -> tuple[Shard, bytes]:
    """Consecutive batches as a shard, and its bytes."""
    failures = Counter(
        outcome.kind for result in results for outcome in result.outcomes if isinstance(outcome, TileFailure)
    )
    data = b"".join(row_format.lines(result.batch.tiles, result.outcomes, result.notes) for result in results)
    shard = Shard(
        first_batch=results[0].batch.index,
        batches=len(results),
        ok=sum(len(result.outcomes) for result in results) - failures.total(),
        failures=dict(failures),
        sha256=sha256_bytes(data),
        flagged=sum(bool(notes.quality) for result in results for notes in result.notes),
        drift=watch.sums(_measured(results, row_format)) if watch else None,
    )
    return shard, data


def _measured(results: list[BatchResult], row_format: RowFormat) -> list[MeasuredTile]:
    return [
        MeasuredTile(row_format.slide(tile, outcome), notes.measures, outcome.probabilities)
        for result in results
        for tile, outcome, notes in zip(result.batch.tiles, result.outcomes, result.notes, strict=True)
        if notes.measures and isinstance(outcome, Prediction)
    ]
