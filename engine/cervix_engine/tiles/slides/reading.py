"""A whole slide, open in OpenSlide: what it says of itself, and the pixels of a region."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from cervix_engine.errors import BackendUnavailableError, TileDecodeError, TileReadError
from cervix_engine.extras import require_installed
from cervix_engine.tiles.preprocess import open_listed, require_listed, resized
from cervix_engine.tiles.slides.grid import Region, SlideShape, nearest_level
from cervix_engine.tiles.tile import TileStamp
from cervix_engine.values import Pixels

log = logging.getLogger(__name__)

# The least of `0xAARRGGBB` that nothing shows through.
_OPAQUE = 0xFF000000

# Tiles of a column share what is decoded with those of the next: columns of 50,000 pixels fit, and not only of 15,000.
CACHE_BYTES = 128 * 2**20


def openslide() -> Any:
    """The library.

    Raises:
        BackendUnavailableError: it is not installed, or is not whole.
    """
    require_installed("slides", "openslide", work="reading whole slides")
    try:
        import openslide as library
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(f"OpenSlide cannot be loaded ({error}): pip install '.[slides]'") from error
    return library


class OpenSlide:
    """A slide, open until it is closed. After an error of OpenSlide it cannot be read any more.

    Args:
        path: the slide's file.
        stamp: what it was when it was listed; None takes whatever lies there.
        by_pillow: read each region as openslide-python does: slower, the same pixels.

    Raises:
        TileReadError: it is not there or not what was listed, or OpenSlide does not know its format, or cannot open it.
        ListingError: the machine has no descriptors or memory left.
        BackendUnavailableError: there is no OpenSlide.
    """

    def __init__(self, path: Path | str, *, stamp: TileStamp | None = None, by_pillow: bool = False) -> None:
        self._path = os.fspath(path)
        library = openslide()
        with open_listed(self._path, stamp=stamp):
            pass  # what the file system says is clearer than what OpenSlide makes of it
        try:
            self._slide = library.OpenSlide(self._path)
        except library.OpenSlideUnsupportedFormatError as error:
            raise TileReadError("not_a_slide", "OpenSlide does not know the file's format") from error
        except library.OpenSlideError as error:
            raise TileReadError("broken_slide", self._words(error)) from error
        self._read_into: Any = None if by_pillow else _reading_into_memory(library)
        self._errors: type[Exception] = library.OpenSlideError
        # Kept between reads: memory that is new takes longer to come than OpenSlide's pixels to be turned.
        self._argb = np.empty(0, np.uint32)
        try:
            self.shape = self._read_shape()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._slide.close()

    def share(self, cache: Any) -> None:
        """Keep what is decoded in this `OpenSlideCache`, and no longer in one of its own."""
        self._slide.set_cache(cache)

    def __enter__(self) -> OpenSlide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_shape(self) -> SlideShape:
        with self._slide_errors():
            known = self._slide.properties
            width, height = self._slide.dimensions
            downsamples = tuple(map(float, self._slide.level_downsamples))
        bounds = [known.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
        area = Region(*map(int, bounds)) if all(bounds) else Region(0, 0, width, height)
        mpp_x, mpp_y = (_number(known.get(f"openslide.mpp-{axis}")) for axis in "xy")
        return SlideShape(area, mpp_x, mpp_y, downsamples)

    def tile(self, region: Region, tile_px: int) -> Pixels:
        """A tile, `uint8 (tile_px, tile_px, 3)` RGB, from the level that is nearest above its resolution.

        Raises:
            TileDecodeError: the region cannot be decoded.
        """
        level = nearest_level(self.shape.downsamples, min(region.width, region.height) / tile_px)
        return self._pixels(region, level, (tile_px, tile_px))

    def region(self, region: Region, level: int) -> Pixels:
        """A region of level 0 as it is on `level`: RGB, what is transparent over the slide's background colour.

        Raises:
            TileDecodeError: it cannot be decoded.
        """
        return self._pixels(region, level, self._size_on(region, level))

    def _size_on(self, region: Region, level: int) -> tuple[int, int]:
        """Width and height."""
        downsample = self.shape.downsamples[level]
        return max(1, round(region.width / downsample)), max(1, round(region.height / downsample))

    def _pixels(self, region: Region, level: int, size: tuple[int, int]) -> Pixels:
        """As `region`, resized to this width and height."""
        own_size = self._size_on(region, level)
        with self._slide_errors():
            opaque = self._read_opaque(region, level, own_size) if self._read_into else None
            if opaque is None:
                return resized(self._on_background(region, level, own_size), size)
        # Resized first, so that fewer pixels change their order.
        return cv2.cvtColor(resized(opaque, size), cv2.COLOR_BGRA2RGB).astype(np.uint8, copy=False)

    def _read_opaque(self, region: Region, level: int, size: tuple[int, int]) -> Pixels | None:
        """BGRA, until the next read; None where background shows through, or nothing is scanned there."""
        width, height = size
        if self._argb.size < width * height:
            self._argb = np.empty(width * height, np.uint32)
        argb = self._argb[: width * height]
        place = argb.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
        self._read_into(self._slide._osr, place, region.x, region.y, level, width, height)  # noqa: SLF001 - its handle
        return argb.view(np.uint8).reshape(height, width, 4) if argb.min() >= _OPAQUE else None

    def _on_background(self, region: Region, level: int, size: tuple[int, int]) -> Pixels:
        from PIL import Image

        picture = self._slide.read_region((region.x, region.y), level, size)
        composed = Image.new("RGB", size, f"#{self._slide.properties.get('openslide.background-color', 'ffffff')}")
        composed.paste(picture, mask=picture)
        return np.asarray(composed)

    @contextmanager
    def _slide_errors(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise TileDecodeError("corrupt", self._words(error)) from error

    def _words(self, error: Exception) -> str:
        """What OpenSlide says, without the names of files, which can identify patients."""
        log.debug("%r: %s", self._path, error)
        path, words = Path(self._path), str(error)
        for name in (self._path, str(path.with_suffix("")), str(path.parent), path.name, path.stem):
            words = words.replace(name, "…")
        return words


class OpenSlides:
    """The slides that a process has open: the last few that it read, since its tiles come slide by slide."""

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._open: OrderedDict[str, OpenSlide] = OrderedDict()
        self._cache: Any = None

    def get(self, path: str, *, stamp: TileStamp | None = None) -> OpenSlide:
        """The slide at `path`, which is opened where it is not open; `stamp` as `OpenSlide`.

        Raises:
            TileReadError, ListingError, BackendUnavailableError: as `OpenSlide`.
        """
        if path in self._open:
            require_listed(path, stamp=stamp)
            self._open.move_to_end(path)
            return self._open[path]
        opened = self._open[path] = OpenSlide(path, stamp=stamp)
        with suppress(openslide().OpenSlideVersionError):  # before 4.0, each slide has its own, and no other
            self._cache = self._cache or openslide().OpenSlideCache(CACHE_BYTES)
            opened.share(self._cache)
        if len(self._open) > self._most:
            self._open.popitem(last=False)[1].close()
        return opened

    def drop(self, path: str) -> None:
        """Close a slide, if it is open: after an error it would fail for ever."""
        if slide := self._open.pop(path, None):
            slide.close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
        self._cache = None


def _reading_into_memory(library: Any) -> Any:
    """OpenSlide's own function, if it can be had: by way of Pillow, a tile takes an eighth longer to come.

    It gives pixels as native 32-bit words, `0xAARRGGBB`, whose colours are multiplied by their alpha.
    """
    return getattr(library.lowlevel, "_read_region", None) if sys.byteorder == "little" else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
