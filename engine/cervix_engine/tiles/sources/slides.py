"""Whole slides: one, or all below a folder, each cut into a grid of tiles.

A tile's path is that of its slide and its box there, `folder/a.svs/x004480_y012096_w448_h448`: it says what is to be
read, and in the table it says where that lies. A slide that cannot be cut is listed as one tile, `folder/a.svs/slide`;
the worker that reads it finds the same reason, and the table names it.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue

from cervix_engine.errors import TileError, TileReadError, UsageError
from cervix_engine.machine import usable_cpus
from cervix_engine.tiles.discover import SLIDE_SUFFIXES, Reason, objection_to_file
from cervix_engine.tiles.listing import Record
from cervix_engine.tiles.slides.cut import CutSlide, cut
from cervix_engine.tiles.slides.grid import GridRules, Region
from cervix_engine.tiles.slides.isolated import Isolated, ProcessDied
from cervix_engine.tiles.slides.preview import write_preview
from cervix_engine.tiles.slides.reading import OpenSlide, OpenSlides, openslide
from cervix_engine.tiles.sources.folder import Folder, SameRoot, Walk
from cervix_engine.tiles.tile import TileStamp
from cervix_engine.values import Pixels

log = logging.getLogger(__name__)

# Parts of slides, or lists of them: each would be read as a slide of its own, and the slide many times.
_PARTS = (b".dcm", b".ets", b".ndpis")
# Whole slides may be TIFFs too, of which only a look inside tells.
_TIFF = (b".tif", b".tiff")

# What stands for a slide that cannot be cut, in place of a region.
UNCUT = "slide"

# To find a slide's tissue takes up to 300 MB.
_MOST_AT_ONCE = 4
# Neighbours share what OpenSlide decodes, those of the next column too: so a worker reads stripes of so many rows.
_LANE_TILES = 16


@dataclass(frozen=True, slots=True)
class WholeSlides:
    """The tiles of whole slides.

    Attributes:
        root: a folder; paths are relative to it.
        rules: how slides are cut.
        only: the name of the one slide in it that is read; None reads all below it.
        follow_links: as in `Folder`.
        previews: a folder for a picture of each slide that shows grid and mask; None makes none.
    """

    root: Path
    rules: GridRules
    only: str | None = None
    follow_links: bool = False
    previews: Path | None = field(default=None, compare=False)

    @classmethod
    def named(cls, name: Path, rules: GridRules, *, follow_links: bool, previews: Path | None) -> WholeSlides:
        """The slide `name`, or all below the folder `name`."""
        root, only = (name, None) if name.is_dir() else (name.parent, name.name)
        return cls(root, rules, only, follow_links, previews)

    @property
    def identity(self) -> str:
        return os.fspath(self.root.resolve() / (self.only or ""))

    @property
    def slide_name(self) -> str:
        return self.only or Folder(self.root).slide_name

    @property
    def tiles_at_once(self) -> int:
        return _LANE_TILES

    def lane(self, path: str) -> int | None:
        """As `TileSource.lane`: a stripe of rows, across the slide."""
        region = Region.from_name(path.rpartition("/")[2])
        return region and region.y // (_LANE_TILES * region.height)

    def __str__(self) -> str:
        return os.fspath(self.root / (self.only or ""))

    def check(self) -> None:
        """As `TileSource.check`.

        Raises:
            BackendUnavailableError: there is no OpenSlide.
        """
        if self.only is None:
            Folder(self.root).check()
        elif not (self.root / self.only).exists():
            raise UsageError(f"no such folder or slide: {self}")
        openslide()

    def walk(self) -> Cutting:
        """As `TileSource.walk`."""
        self._begin()
        return Cutting(self)

    def walk_again(self, listed: Iterable[bytes]) -> Cutting:
        """As `TileSource.walk_again`: a slide that is still there has the tiles that it had."""
        self._begin()
        return Cutting(self, listed=listed)

    def _begin(self) -> None:
        self.check()
        log.warning(
            "whole slides: the model was trained on tiles that show a single cell each; what it says of a tile of a "
            "grid, with many cells or none, was never tested"
        )

    def again(self, names: Iterable[bytes], *, spool: Path) -> Iterator[Record]:
        """As `TileSource.again`."""
        folder = Folder(self.root, self.follow_links or self.only is not None)
        for slide, tiles in groupby(names, key=_slide_of):
            [(_, size, mtime_ns, where)] = folder.again([slide], spool=spool)
            for name in tiles:
                yield name, size, mtime_ns, where

    def reader(self) -> SlideReader:
        """As `TileSource.reader`."""
        root = self.root.absolute()  # workers have a working directory of their own
        return SlideReader(os.path.join(root, ""), self.rules, SameRoot(root))  # noqa: PTH118 - text

    def holds(self, path: Path) -> bool:
        """As `TileSource.holds`."""
        if self.only is None:
            return Folder(self.root).holds(path)
        return path.resolve() == (self.root / self.only).resolve()


# What a process does with the file of a slide: None where it cannot be cut.
CutFile = Callable[[str, TileStamp, GridRules, Path | None], CutSlide | None]


class Cutting:
    """One pass over slides: yields the tiles of each, and counts the files that are no slides.

    A few slides are looked at at once, ahead of those whose tiles are taken, by processes that one may crash.

    Args:
        source: of the slides.
        listed: tiles of slides that need no cut where they are still there, in byte order.
        cut_file: tests hand in their own.
    """

    def __init__(self, source: WholeSlides, *, listed: Iterable[bytes] = (), cut_file: CutFile | None = None) -> None:
        self._source = source
        self._listed = listed
        self._cut_file = cut_file or _cut_file
        self._walk = Walk(source.root, follow_links=source.follow_links, objection=_objection)
        self.ignored: Counter[str] = self._walk.ignored

    def __iter__(self) -> Iterator[Record]:
        slides = {slide[0]: slide for slide in self._slides()}
        for name, tiles in groupby(self._listed, key=_slide_of):
            if name in slides and self._preview_is_there(name):
                stamp = slides.pop(name)[1:]
                yield from ((tile, *stamp) for tile in tiles)
        yield from self._cut_all(sorted(slides.values()))

    def _cut_all(self, slides: Sequence[Record]) -> Iterator[Record]:
        processes = [Isolated() for _ in range(min(_MOST_AT_ONCE, usable_cpus()))]
        free: SimpleQueue[Isolated] = SimpleQueue()
        for process in processes:
            free.put(process)
        pool = ThreadPoolExecutor(len(processes))
        begun: deque[tuple[Record, Future[CutSlide | None]]] = deque()
        try:
            for slide in slides:
                begun.append((slide, pool.submit(self._cut, slide, free)))
                if len(begun) > len(processes):
                    yield from _records(*begun.popleft())
            while begun:
                yield from _records(*begun.popleft())
        finally:
            for process in processes:
                process.kill()
            pool.shutdown(cancel_futures=True)
            for process in processes:
                process.close()

    def _slides(self) -> Iterator[Record]:
        if self._source.only is None:
            return iter(self._walk)
        name = os.fsencode(self._source.only)
        return Folder(self._source.root, follow_links=True).again([name], spool=Path())

    def _cut(self, slide: Record, free: SimpleQueue[Isolated]) -> CutSlide | None:
        """None where it cannot be cut: why, its row will say."""
        name, size, mtime_ns, _ = slide
        path = os.path.join(self._source.root.absolute(), os.fsdecode(name))  # noqa: PTH118 - for surrogate escapes
        stamp, rules, preview = TileStamp(size, mtime_ns), self._source.rules, self._preview(name)
        process = free.get()
        try:
            return process.call(self._cut_file, path, stamp, rules, preview)
        except ProcessDied:
            log.debug("slide %r: the process that looked at it has ended", path)
            return None
        finally:
            free.put(process)

    def _preview(self, slide: bytes) -> Path | None:
        previews = self._source.previews
        return previews.absolute() / f"{os.fsdecode(slide)}.png" if previews else None

    def _preview_is_there(self, slide: bytes) -> bool:
        """Also where none is asked for."""
        preview = self._preview(slide)
        return preview is None or preview.exists()


def _cut_file(path: str, stamp: TileStamp, rules: GridRules, preview: Path | None) -> CutSlide | None:
    try:
        with OpenSlide(path, stamp=stamp) as opened:
            return cut(opened, rules, shown=partial(write_preview, preview) if preview else None)
    except TileError:
        return None


@dataclass(frozen=True, slots=True)
class SlideReader:
    """Reads tiles of slides, which stay open meanwhile.

    Attributes:
        prefix: of their paths.
        rules: how slides are cut.
    """

    prefix: str
    rules: GridRules
    _same_root: SameRoot
    _slides: OpenSlides = field(default_factory=OpenSlides, compare=False)

    def read(self, path: str, stamp: TileStamp | None) -> Pixels:
        """As `TileReader.read`: a tile of `rules.tile_px`, at `rules.mpp`."""
        slide, _, name = (self.prefix + path).rpartition("/")
        region = Region.from_name(name)
        if region is None:
            raise self._why_uncut(slide, stamp)
        try:
            return self._slides.get(slide, stamp=stamp).tile(region, self.rules.tile_px)
        except TileError:
            self._slides.drop(slide)  # OpenSlide reads nothing more after an error
            raise

    def _why_uncut(self, slide: str, stamp: TileStamp | None) -> TileError:
        try:
            with OpenSlide(slide, stamp=stamp) as opened:
                cut(opened, self.rules)
        except TileError as error:
            return error
        return TileReadError("changed", "the slide could not be cut when it was listed, and can be now")

    def expect(self, tiles: Sequence[tuple[str, TileStamp | None]]) -> None:
        """As `TileReader.expect`: the kernel reads ahead."""

    def require_there(self) -> None:
        """As `TileReader.require_there`."""
        self._same_root.require()


def is_named_slide(name: str | os.PathLike[str]) -> bool:
    """Whether this is the name of a whole slide, and not of a folder."""
    return os.fsencode(name).lower().endswith(SLIDE_SUFFIXES) and not os.path.isdir(name)  # noqa: PTH112 - long names


def _slide_of(tile: bytes) -> bytes:
    return tile.rpartition(b"/")[0]


def _objection(name: bytes) -> Reason | None:
    lower = name.lower()
    if lower.endswith(_TIFF) or (lower.endswith(SLIDE_SUFFIXES) and not lower.endswith(_PARTS)):
        return "hidden" if name.startswith(b".") else None
    # What else would be a tile is none here.
    return objection_to_file(name) or "suffix"


def _records(slide: Record, cutting: Future[CutSlide | None]) -> Iterator[Record]:
    name, size, mtime_ns, where = slide
    made = cutting.result()
    tiles = (region.name for region in made) if made else [UNCUT]
    for tile in tiles:
        yield b"%b/%b" % (name, tile.encode()), size, mtime_ns, where
