"""A slot: one preallocated batch that circulates from decoding to inference and back."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cervix_engine.run.stream.channel import Stop, Stopped
from cervix_engine.run.stream.decode import Decoded
from cervix_engine.tiles.tile import NO_NOTES, TileNotes, TileRef
from cervix_engine.values import Pixels


@dataclass(frozen=True, slots=True)
class TileBatch:
    """Batch `index` of a run: always the same tiles of the listing, whatever the workers and however often resumed."""

    index: int
    tiles: tuple[TileRef, ...]


class Slot:
    """Pixels of one batch, `uint8 (batch, height, width, 3)`, and what became of each tile's decoding.

    Decode workers fill its places, in any order; `wait_filled` returns when the last one is. No batch-sized array is
    made after the slots.

    Args:
        stop: the stream's stop.
        number: its place among the slots, by which workers know it.
        pixels: zeroed.
    """

    def __init__(self, stop: Stop, number: int, pixels: Pixels) -> None:
        self.number = number
        self.pixels = pixels
        self.decoded: list[Decoded | None] = []
        self.notes: list[TileNotes] = []
        self.batch = TileBatch(0, ())
        self._stop = stop
        self._pending = 0
        self._filled = threading.Event()
        stop.wakes(self._filled.set)

    def assign(self, batch: TileBatch) -> None:
        """Start over with a new batch; the places behind its last tile are blanked, so padding never varies."""
        self.batch = batch
        self.decoded = [None] * len(batch.tiles)
        self.notes = [NO_NOTES] * len(batch.tiles)
        self.pixels[len(batch.tiles) :] = 0
        self._pending = len(batch.tiles)
        self._filled.clear()

    def fill(self, start: int, decoded: Sequence[Decoded], notes: Mapping[int, TileNotes]) -> None:
        """Note what became of the tiles from `start` on, whose pixels are in their places; `notes` count from there."""
        self.decoded[start : start + len(decoded)] = decoded
        for place, note in notes.items():
            self.notes[start + place] = note
        self._pending -= len(decoded)
        if self._pending == 0:
            self._filled.set()

    def wait_filled(self) -> None:
        """Wait until every position is decoded.

        Raises:
            Stopped: the stream was stopped.
        """
        self._filled.wait()
        if self._stop.is_set:
            raise Stopped
