"""What a decode worker does with one tile, from its name to its pixels in their place."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import cv2

from cervix_engine.contract import ModelContract
from cervix_engine.drift.measures import is_measured, measure_image
from cervix_engine.errors import TileError, TileReadError
from cervix_engine.files import sha256_bytes
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.tiles.quality import quality_flags
from cervix_engine.tiles.sources.source import TileReader
from cervix_engine.tiles.tile import NO_NOTES, TileFailure, TileNotes, TileRef, TileStamp
from cervix_engine.values import Pixels

# What became of a tile: its height and width, or why it has none. Like the next one, plain values where every tile has
# one: objects would take the run longer to take or send than all of the rest.
Decoded = tuple[int, int] | TileFailure

# A tile as workers are told of it: its path, and the values of its stamp where it has one.
SentTile = tuple[str, tuple[int, int, str] | None]
# And as they know it then.
ExpectedTile = tuple[str, TileStamp | None]

# The largest message between a run and its workers: the names of a chunk's tiles, of at most 4,096 bytes each.
MESSAGE_BYTES = 2**18

# Far more than the largest tile takes on a busy machine: what is not decoded by then never will be.
TILE_SECONDS = 60.0
# The largest tile, decoded twice with an alpha channel and judged in floating point, beside its file's bytes.
WORKER_BYTES = 4 * 2**30


def to_send(tile: TileRef) -> SentTile:
    """What a worker needs to know of a tile."""
    stamp = tile.stamp
    return tile.path, (stamp.size_bytes, stamp.mtime_ns, stamp.where) if stamp else None


def received(tile: SentTile) -> ExpectedTile:
    """The inverse of `to_send`, in the worker."""
    path, stamp = tile
    return path, TileStamp(*stamp) if stamp else None


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one tile may take before its worker is ended.

    Attributes:
        tile_seconds: of decoding alone: a file that cannot be read for a while, as on a share, is waited for.
        worker_bytes: private memory, beside what a worker has when it starts.
    """

    tile_seconds: float = TILE_SECONDS
    worker_bytes: int = WORKER_BYTES


DEFAULT_LIMITS = DecodeLimits()


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """What all tiles of a stream have in common; each worker is told it once.

    Attributes:
        reader: of the source of tiles.
        shape: of all slots together, `(slots, batch, height, width, 3)`.
        steps: from a tile's name to its pixels.
        hash_tiles, judge_quality: whether to note the SHA-256 of a tile's bytes, and the flags of its pixels.
        measure_step: one in how many tiles is measured for drift; 0 for none.
    """

    reader: TileReader
    contract: ModelContract
    shape: tuple[int, ...]
    steps: TileSteps
    hash_tiles: bool = False
    judge_quality: bool = False
    measure_step: int = 0
    limits: DecodeLimits = DEFAULT_LIMITS

    def decode(self, tile: ExpectedTile, out: Pixels) -> tuple[Decoded, TileNotes]:
        """Fill a tile's place in a slot, or blank it and say why.

        Raises:
            MemoryError: it takes more memory than a worker may have.
            ListingError: the source of tiles is gone, or the machine cannot read any.
        """
        path, stamp = tile
        digest, flags, measures = "", tuple[str, ...](), tuple[float, ...]()

        def judge(pixels: Pixels) -> None:
            nonlocal flags
            flags = quality_flags(pixels, self.contract.tile_statistics)

        decoded: Decoded
        try:
            data = self.steps.read(self.reader, path, stamp)
            if self.hash_tiles:
                digest = sha256_bytes(data)
            look = judge if self.judge_quality else None
            # Where it takes longer, SIGALRM ends this process: native code that hangs hears nothing else.
            signal.setitimer(signal.ITIMER_REAL, self.limits.tile_seconds)
            try:
                size = self.steps.preprocess_into(out, data, contract=self.contract, look=look)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            decoded = size.height, size.width
            if self.measure_step and is_measured(path, self.measure_step):
                measures = measure_image(out, height=size.height, width=size.width)
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise MemoryError from error
            raise
        except TileError as error:
            if isinstance(error, TileReadError):
                self.reader.require_there()
            # Blank, so that a neighbour's numbers cannot depend on what this place held before.
            out[...] = 0
            decoded = TileFailure("read" if isinstance(error, TileReadError) else "decode", str(error))
        return decoded, TileNotes(digest, flags, measures) if digest or flags or measures else NO_NOTES
