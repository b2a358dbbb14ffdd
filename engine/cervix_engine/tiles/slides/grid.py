"""Where the tiles of a whole slide lie: pure arithmetic, in pixels of level 0, the slide at full resolution.

A tile covers `tile_px` at `mpp` micrometres a pixel, whatever the slide's own resolution is. On level 0 that is rounded
to whole pixels, and so is the step to the next tile: a tile's box is exactly what is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from cervix_engine.errors import TileReadError, UsageError

# No scanner is finer or coarser than this: a TIFF of 72 dots an inch says 353 µm, and means that nobody knows.
FINEST_MPP, COARSEST_MPP = 0.02, 20.0

# Levels of a pyramid are rounded to whole pixels, so that a level of 4 is one of 4.0003.
_SAME_DOWNSAMPLE = 1.01

_NAME = re.compile(r"x(\d+)_y(\d+)_w(\d+)_h(\d+)")
_DIGITS = 6


class Region(NamedTuple):
    """A tile's box on level 0, in pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def name(self) -> str:
        """Such as `x004480_y012096_w224_h224`: names sort as the tiles lie, column by column."""
        return f"x{self.x:0{_DIGITS}}_y{self.y:0{_DIGITS}}_w{self.width}_h{self.height}"

    @classmethod
    def from_name(cls, name: str) -> Region | None:
        """The region of a name, or None where it is no such name."""
        found = _NAME.fullmatch(name)
        return cls(*map(int, found.groups())) if found else None


@dataclass(frozen=True, slots=True)
class GridRules:
    """How every slide of a run is cut into tiles.

    Attributes:
        tile_px: side of a tile in pixels, at `mpp`.
        mpp: micrometres a pixel of a tile.
        overlap: the share of a tile that the next one covers too, from 0 up to 0.9.
        slide_mpp: micrometres a pixel of level 0, for slides that do not say it themselves.
        tissue_only: whether tiles without tissue are left out.
    """

    tile_px: int = 224
    mpp: float = 0.5
    overlap: float = 0.0
    slide_mpp: float | None = None
    tissue_only: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.tile_px <= 8192:
            raise UsageError(f"a tile of {self.tile_px} pixels, expected 1 to 8192")
        for mpp in (self.mpp, *([self.slide_mpp] if self.slide_mpp is not None else [])):
            if not FINEST_MPP <= mpp <= COARSEST_MPP:
                raise UsageError(f"{mpp} µm a pixel, expected {FINEST_MPP} to {COARSEST_MPP}")
        if not 0 <= self.overlap <= 0.9:
            raise UsageError(f"an overlap of {self.overlap}, expected 0 to 0.9")

    @property
    def text(self) -> str:
        """What a run remembers them by, and `from_text` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> GridRules:
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class SlideShape:
    """What a slide says of itself.

    Attributes:
        area: the part of level 0 that was scanned.
        mpp_x, mpp_y: micrometres a pixel of level 0, or None where the slide does not say it.
        downsamples: of each level, from 1.
    """

    area: Region
    mpp_x: float | None
    mpp_y: float | None
    downsamples: tuple[float, ...]

    def resolution(self, rules: GridRules) -> tuple[float, float]:
        """Micrometres a pixel of level 0, along x and y: the slide's own, else the rules'.

        Raises:
            TileReadError: neither says it.
        """
        mpp = tuple(
            own if own is not None and FINEST_MPP <= own <= COARSEST_MPP else rules.slide_mpp
            for own in (self.mpp_x, self.mpp_y)
        )
        if mpp[0] is None or mpp[1] is None:
            raise TileReadError("no_resolution", "the slide does not say its micrometres per pixel: --slide-mpp does")
        return mpp[0], mpp[1]


@dataclass(frozen=True, slots=True)
class Grid:
    """The tiles of one slide. All lie wholly on it: the last of a row or column ends where the slide does.

    Attributes:
        width, height: of a tile, in pixels of level 0.
        lefts, tops: where its columns and rows begin.
    """

    width: int
    height: int
    lefts: tuple[int, ...]
    tops: tuple[int, ...]

    @classmethod
    def on(cls, shape: SlideShape, rules: GridRules) -> Grid:
        """The grid of a slide.

        Raises:
            TileReadError: the slide's resolution is not known, or it is smaller than a tile.
        """
        area, extent_um = shape.area, rules.tile_px * rules.mpp
        width, height = (max(1, round(extent_um / mpp)) for mpp in shape.resolution(rules))
        if area.width < width or area.height < height:
            raise TileReadError(
                "too_small", f"the slide has {area.width} x {area.height} pixels, a tile {width} x {height}"
            )
        return cls(
            width,
            height,
            tuple(area.x + start for start in _starts(area.width, width, rules.overlap)),
            tuple(area.y + start for start in _starts(area.height, height, rules.overlap)),
        )

    def __len__(self) -> int:
        return len(self.lefts) * len(self.tops)

    def __iter__(self) -> Iterator[Region]:
        for x in self.lefts:
            for y in self.tops:
                yield Region(x, y, self.width, self.height)


def _starts(length: int, side: int, overlap: float) -> Iterator[int]:
    """Where tiles of `side` begin that cover all of `length`."""
    last = length - side
    yield from range(0, last, max(1, round(side * (1 - overlap))))
    yield last


def pixels_of(tile_um: float, *, mpp: float) -> int:
    """The side of a tile of `tile_um` micrometres, to the nearest whole pixel of `mpp`."""
    return round(tile_um / mpp)


def nearest_level(downsamples: Sequence[float], wanted: float) -> int:
    """The coarsest level that is no coarser than `wanted`; level 0 where all are."""
    fine_enough = [level for level, downsample in enumerate(downsamples) if downsample <= wanted * _SAME_DOWNSAMPLE]
    return max(fine_enough, key=lambda level: downsamples[level], default=0)
