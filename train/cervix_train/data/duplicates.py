"""Finds tiles that show the same thing: copies, and copies that were turned, flipped, lit, cropped or re-encoded.

1. Exact copies have the same file digest.
2. Candidates are close in the lowest frequencies of their cosine transform, without its mean, scaled to length 1:
   so brightness and contrast do not matter, and the eight flips and quarter turns are changes of sign and a
   transposition of those numbers, not eight more transforms.
3. A candidate counts when the two thumbnails, laid over each other in that orientation, correlate, also where one
   shows only the centre of the other (to 90 % of its sides).

Arbitrary rotations and smaller crops are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import TileError
from cervix_engine.files import sha256_bytes
from cervix_engine.tiles.preprocess import preprocess, read_tile

SIDE = 64  # of a thumbnail, in pixels
FREQUENCIES = 8
CANDIDATE = 0.90  # cosine of two descriptors
SAME = 0.97  # correlation of two thumbnails
CROPS = (1.0, 0.975, 0.95, 0.925, 0.9)
_BLOCK = 512

_CONTRACT = ModelContract(classes=SIPAKMED_CLASSES, input_size=(SIDE, SIDE))

Grey = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is compared of a tile.

    Attributes:
        digest: hex SHA-256 of its file.
        grey: thumbnail, `float32 (SIDE, SIDE)`.
        descriptor: lowest frequencies, `float32 (FREQUENCIES, FREQUENCIES)`, of length 1 and without the mean.
    """

    digest: str
    grey: Grey
    descriptor: Grey


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tiles that show the same thing, by their places in the list; `first` < `second`.

    Attributes:
        exact: their files are equal byte for byte.
        correlation: of their thumbnails, 1 for exact copies.
    """

    first: int
    second: int
    exact: bool
    correlation: float


def fingerprint(path: Path) -> Fingerprint | None:
    """None where the tile cannot be decoded: training names and leaves out such tiles."""
    try:
        data = read_tile(path)
        pixels = preprocess(data, contract=_CONTRACT)
    except TileError:
        return None
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low = np.asarray(cv2.dct(grey))[:FREQUENCIES, :FREQUENCIES].copy()
    low[0, 0] = 0
    unit = (low / max(float(np.linalg.norm(low)), 1e-6)).astype(np.float32)
    return Fingerprint(sha256_bytes(data), grey, unit)


def find_pairs(prints: Sequence[Fingerprint | None], *, advance: Callable[[int], None]) -> list[Pair]:
    """All pairs of tiles that show the same thing; `advance` is told how many more tiles were compared."""
    usable = [index for index, item in enumerate(prints) if item is not None]
    known = [item for item in prints if item is not None]
    pairs = []
    for a, b, turn in _candidates(known, advance=advance):
        exact = known[a].digest == known[b].digest
        correlation = 1.0 if exact else _correlation(_turned(known[a].grey, turn), known[b].grey)
        if correlation >= SAME:
            pairs.append(Pair(usable[a], usable[b], exact, correlation))
    return pairs


def groups_of_pairs(count: int, pairs: Sequence[Pair]) -> list[int]:
    """The smallest place of all tiles that a tile is linked to, directly or through others; for each of `count`."""
    root = list(range(count))

    def find(place: int) -> int:
        while root[place] != place:
            root[place] = root[root[place]]
            place = root[place]
        return place

    for pair in pairs:
        first, second = sorted((find(pair.first), find(pair.second)))
        root[second] = first
    return [find(place) for place in range(count)]


def _candidates(known: Sequence[Fingerprint], *, advance: Callable[[int], None]) -> Iterator[tuple[int, int, int]]:
    """(a, b, turn) with a < b: b looks like a after `turn`, the best of the eight."""
    if not known:
        return
    flat = np.stack([item.descriptor.ravel() for item in known])
    turned = np.stack([_turned_descriptors(item.descriptor) for item in known])
    for start in range(0, len(known), _BLOCK):
        block = turned[start : start + _BLOCK]
        # (block, 8, frequencies) x (frequencies, all): every tile of the block, each way round, against all.
        cosines = np.einsum("bkf,nf->bkn", block, flat, optimize=True)
        best = cosines.max(axis=1)
        for row, other in zip(*np.nonzero(best >= CANDIDATE), strict=True):
            if start + row < other:
                yield int(start + row), int(other), int(cosines[row, :, other].argmax())
        advance(len(block))


def _turned(values: Grey, turn: int) -> Grey:
    """One of the eight flips and quarter turns: bit 0 flips columns, bit 1 rows, bit 2 transposes first."""
    turned = values.T if turn & 4 else values
    turned = turned[::-1] if turn & 2 else turned
    return np.ascontiguousarray(turned[:, ::-1] if turn & 1 else turned)


def _turned_descriptors(descriptor: Grey) -> Grey:
    """The descriptors of the eight orientations, `(8, frequencies)`, in the order of `_turned`."""
    signs = np.where(np.arange(FREQUENCIES) % 2, -1, 1).astype(np.float32)
    rows = []
    for turn in range(8):
        turned = descriptor.T if turn & 4 else descriptor
        turned = turned * signs[:, None] if turn & 2 else turned
        rows.append((turned * signs if turn & 1 else turned).ravel())
    return np.stack(rows)


def _correlation(a: Grey, b: Grey) -> float:
    """The best of laying one over the other, whole or over the other's centre."""
    return max(
        _pearson(first, second) for crop in CROPS for first, second in ((_centre(a, crop), b), (a, _centre(b, crop)))
    )


def _centre(grey: Grey, share: float) -> Grey:
    """The centre of a thumbnail, `share` of its sides, at the thumbnail's size again."""
    if share == 1.0:
        return grey
    # An affine map keeps fractions of pixels, which slicing would round.
    shift = (1 - share) * (SIDE - 1) / 2
    matrix = np.array([[share, 0, shift], [0, share, shift]], np.float32)
    return np.asarray(cv2.warpAffine(grey, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP))


def _pearson(a: Grey, b: Grey) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-6))
