"""The types that every room exchanges: a tile that was found, and its outcome, a prediction or a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["read", "decode"]


@dataclass(frozen=True, slots=True)
class TileStamp:
    """What tells a tile from what it was when it was listed.

    Attributes:
        size_bytes: of its file.
        mtime_ns: of the last change of its file, or of the one that holds many tiles.
        where: in such a file it lies, in the words of its source; empty where a tile is a file of its own.
    """

    size_bytes: int
    mtime_ns: int
    where: str = ""


@dataclass(frozen=True, slots=True)
class TileRef:
    """One tile of the listing.

    Attributes:
        index: in the listing, from 0.
        path: relative to its source, `/`-separated, undecodable bytes as surrogate escapes. It is the
            tile's identity: a stem alone is not unique.
        stamp: the file as it was listed; None where any will do.
    """

    index: int
    path: str
    stamp: TileStamp | None = None


@dataclass(frozen=True, slots=True)
class TileNotes:
    """What was noted of a tile, predicted or failed, for optional columns and for the run as a whole.

    Attributes:
        sha256: hex SHA-256 of its file's bytes, those that were decoded; empty where they could not be read or the
            run does not hash.
        quality: flags of the decoded tile, see `quality.py`; empty where there are none or the run looks for none.
        measures: of the preprocessed tile, see `drift/measures.py`; empty where it is not one that is measured.
    """

    sha256: str = ""
    quality: tuple[str, ...] = ()
    measures: tuple[float, ...] = ()


NO_NOTES = TileNotes()


@dataclass(frozen=True, slots=True)
class TileFailure:
    """Why a tile has no prediction: `reason` is `kind: message` and names no file."""

    stage: Stage
    reason: str

    @property
    def kind(self) -> str:
        return self.reason.partition(":")[0]


@dataclass(frozen=True, slots=True)
class TileSize:
    """Decoded height and width of a tile in pixels, before any resize."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one tile: `probabilities[i]` belongs to the contract's class `i`."""

    size: TileSize
    probabilities: tuple[float, ...]


# Exactly one for each tile of a listing.
Outcome = Prediction | TileFailure
