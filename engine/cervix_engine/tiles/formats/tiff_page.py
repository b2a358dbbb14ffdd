"""TIFF 6.0 and BigTIFF: what the directory says, and which pages have a single meaning as 8-bit RGB.

One page is read. Pages behind it are passed over where they are marked as reduced copies of it, unless they are the
levels of a whole slide.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.formats.header import corrupt, refuse_depth, refuse_size, truncated

Tags = Mapping[int, tuple[int, ...]]

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, COLOUR_MODEL, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_SIZES, PLANES = 273, 274, 277, 278, 279, 284
PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES = 317, 320, 322, 323, 324, 325
SUB_PAGES, SAMPLE_FORMAT, JPEG_TABLES = 330, 339, 347
_KNOWN_TAGS = frozenset(
    {SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, COLOUR_MODEL, FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES}
    | {ROWS_PER_STRIP, STRIP_SIZES, PLANES, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES}
    | {SUB_PAGES, SAMPLE_FORMAT, JPEG_TABLES}
)
_CODES = {1: "B", 3: "H", 4: "I", 7: "B", 13: "I", 16: "Q", 18: "Q"}
_MAX_VALUES = 2**16  # as many tiles of 64 x 64 pixels as the largest image has
_MAX_PAGES = 256
_HEAD_BYTES = 8
_REDUCED_COPY = 1
# A tile may have levels too, as some programs write them whatever a picture's size is.
_MOST_TILE_PX = 2048

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, YCBCR: 3}  # samples a pixel
_MAY_HAVE_ALPHA = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)

NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD, WEBP = 1, 5, 7, 8, 32946, 32773, 34925, 50000, 50001
APERIO_YCBCR, APERIO_RGB, JPEG2000 = 33003, 33005, 34712
IN_BYTES = frozenset({NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD})
JPEG2000S = frozenset({APERIO_YCBCR, APERIO_RGB, JPEG2000})
AS_IMAGES = JPEG2000S | {JPEG, WEBP}
PREDICTED = frozenset({LZW, DEFLATE, OLD_DEFLATE, LZMA, ZSTD})


@dataclass(frozen=True, slots=True)
class TiffPage:
    """One page whose pixels can be told.

    Attributes:
        height, width: in pixels.
        bits: a sample, 1, 2, 4 or 8.
        colour_model: as TIFF numbers them.
        samples: a pixel; those beyond the colours are an alpha channel.
        planar: whether each sample has segments of its own.
        compression: as TIFF numbers them.
        predicted: whether samples are stored as differences to their neighbour's on the left.
        reversed_bits: whether the lowest bit of each byte comes first.
        segment_height, segment_width: of a strip or tile; the last ones of strips are shorter, those of tiles are not.
        tiled: whether segments are tiles.
        segments: (offset, size) of each in the file, plane by plane, row by row.
        palette: all reds, greens and blues, of 16 bits.
        jpeg_tables: what JPEG segments have in common.
    """

    height: int
    width: int
    bits: int
    colour_model: int
    samples: int
    planar: bool
    compression: int
    predicted: bool
    reversed_bits: bool
    segment_height: int
    segment_width: int
    tiled: bool
    segments: tuple[tuple[int, int], ...]
    palette: tuple[int, ...]
    jpeg_tables: bytes

    @property
    def colours(self) -> int:
        """Samples a pixel without an alpha channel."""
        return _COLOURS[self.colour_model]

    @property
    def has_alpha(self) -> bool:
        return self.samples > self.colours


def read_page(data: bytes) -> TiffPage:
    """Read the first page's directory.

    Raises:
        TileDecodeError: it is broken, lies outside the file, or has no single meaning as 8-bit RGB.
        TileShapeError: dimensions of zero or above the limits.
    """
    tags = _only_page(data)
    if WIDTH not in tags or HEIGHT not in tags:
        raise corrupt("TIFF without dimensions")
    height, width = _size(tags)
    refuse_size(height, width)
    compression = _first(tags, COMPRESSION, NONE)
    if compression not in IN_BYTES | AS_IMAGES:
        raise TileDecodeError("unsupported_compression", f"TIFF compression {compression}")
    model, samples = _colours(tags)
    bits = _depth(tags, samples, compression)
    if (orientation := _first(tags, ORIENTATION, 1)) != 1:
        raise TileDecodeError("unsupported_orientation", f"TIFF orientation {orientation}, expected 1 (upright)")
    planar = _one_of(tags, PLANES, {1: False, 2: samples > 1})
    _refuse_combination(compression, model, samples, planar=planar)
    segment_height, segment_width, tiled = _segment_size(tags, height, width)
    count = -(-width // segment_width) * -(-height // segment_height) * (samples if planar else 1)
    return TiffPage(
        height,
        width,
        bits,
        model,
        samples,
        planar,
        compression,
        predicted=_is_predicted(tags, compression, bits),
        reversed_bits=_one_of(tags, FILL_ORDER, {1: False, 2: True}),
        segment_height=segment_height,
        segment_width=segment_width,
        tiled=tiled,
        segments=_segments(tags, count, len(data), tiled=tiled),
        palette=_palette(tags, bits) if model == PALETTE else (),
        jpeg_tables=_tables(tags),
    )


def _first(tags: Tags, tag: int, default: int) -> int:
    return tags.get(tag, (default,))[0]


def _one_of(tags: Tags, tag: int, meanings: Mapping[int, bool]) -> bool:
    value = _first(tags, tag, 1)
    if value not in meanings:
        raise corrupt(f"TIFF tag {tag} is {value}")
    return meanings[value]


def _colours(tags: Tags) -> tuple[int, int]:
    """The colour model, and samples a pixel."""
    if COLOUR_MODEL not in tags:
        raise corrupt("TIFF without a colour model")
    model, samples = tags[COLOUR_MODEL][0], _first(tags, SAMPLES, 1)
    if model not in _COLOURS:
        raise TileDecodeError("unsupported_colour", f"TIFF colour model {model}, expected grey, RGB, palette or YCbCr")
    if samples - _COLOURS[model] not in ((0, 1) if model in _MAY_HAVE_ALPHA else (0,)):
        raise TileDecodeError("unsupported_colour", f"TIFF colour model {model} with {samples} samples a pixel")
    return model, samples


def _refuse_combination(compression: int, model: int, samples: int, *, planar: bool) -> None:
    """Refuse colours that a codec does not bring, and YCbCr that none turns into RGB."""
    in_bytes = compression in IN_BYTES and model != YCBCR
    as_jpeg = compression == JPEG and model != PALETTE and samples in (1, 3) and not (planar and model == YCBCR)
    as_webp = compression == WEBP and model == RGB and not planar
    as_jpeg2000 = compression in JPEG2000S and model in (BLACK_IS_ZERO, RGB) and samples in (1, 3) and not planar
    if not (in_bytes or as_jpeg or as_webp or as_jpeg2000):
        kind = "unsupported_colour" if compression in IN_BYTES else "unsupported_compression"
        raise TileDecodeError(kind, f"TIFF compression {compression} of {samples} samples in colour model {model}")


def _depth(tags: Tags, samples: int, compression: int) -> int:
    depths = tags.get(BITS, (1,))
    refuse_depth(max(depths))
    bits = depths[0]
    allowed = (1, 2, 4, 8) if samples == 1 and compression in IN_BYTES else (8,)
    if bits not in allowed or set(depths) != {bits}:
        raise TileDecodeError("unsupported_depth", f"TIFF with {bits} bits in each of {samples} samples")
    if set(tags.get(SAMPLE_FORMAT, (1,))) != {1}:
        raise TileDecodeError("unsupported_depth", "TIFF samples that are not unsigned integers")
    return bits


def _is_predicted(tags: Tags, compression: int, bits: int) -> bool:
    if compression not in PREDICTED:
        return False  # the tag has no meaning then
    predictor = _first(tags, PREDICTOR, 1)
    if predictor not in (1, 2) or (predictor == 2 and bits != 8):
        raise TileDecodeError("unsupported_compression", f"TIFF predictor {predictor} with {bits} bits a sample")
    return predictor == 2


def _segment_size(tags: Tags, height: int, width: int) -> tuple[int, int, bool]:
    if TILE_WIDTH in tags or TILE_OFFSETS in tags:
        tile_height, tile_width = _first(tags, TILE_HEIGHT, 0), _first(tags, TILE_WIDTH, 0)
        refuse_size(tile_height, tile_width)
        return tile_height, tile_width, True
    rows = _first(tags, ROWS_PER_STRIP, height)
    if rows == 0:
        raise corrupt("TIFF with strips of no rows")
    return min(rows, height), width, False


def _segments(tags: Tags, count: int, length: int, *, tiled: bool) -> tuple[tuple[int, int], ...]:
    offsets = tags.get(TILE_OFFSETS if tiled else STRIP_OFFSETS, ())
    sizes = tags.get(TILE_SIZES if tiled else STRIP_SIZES, ())
    if not len(offsets) == len(sizes) == count:
        raise corrupt(f"TIFF with {len(offsets)} strips or tiles and {len(sizes)} sizes, expected {count}")
    if min(offsets) < _HEAD_BYTES:
        raise corrupt("TIFF with pixels in its own head")  # or with none, where a writer left out what is empty
    if any(at + size > length for at, size in zip(offsets, sizes, strict=True)):
        raise truncated("TIFF ends inside its pixels")
    return tuple(zip(offsets, sizes, strict=True))


def _palette(tags: Tags, bits: int) -> tuple[int, ...]:
    colours = tags.get(COLOUR_MAP, ())
    if len(colours) != 3 << bits:
        raise corrupt(f"TIFF palette of {len(colours)} values, expected {3 << bits}")
    return colours


def _tables(tags: Tags) -> bytes:
    tables = tags.get(JPEG_TABLES, ())
    if max(tables, default=0) > 0xFF:
        raise corrupt("TIFF with tables for JPEG that are no bytes")
    return bytes(tables)


def _only_page(data: bytes) -> Tags:
    layout = _Layout(data)
    pages = layout.pages()
    tags = next(pages, None)
    if tags is None:
        raise corrupt("TIFF without a page")
    like_slide = TILE_OFFSETS in tags and max(_size(tags)) > _MOST_TILE_PX
    if like_slide and SUB_PAGES in tags:
        raise _whole_slide(tags)
    for count, following in enumerate(pages):
        # The first of several must be the full one, or else another is.
        is_copy = _first(following, SUBFILE, 0) & _REDUCED_COPY and not _first(tags, SUBFILE, 0) & _REDUCED_COPY
        if like_slide and (TILE_OFFSETS in following or not is_copy):
            raise _whole_slide(tags)
        if not is_copy:
            raise TileDecodeError("multi_page", "a TIFF with more than one page")
        if count == _MAX_PAGES:
            raise corrupt("TIFF with pages without end")
    return tags


def _size(tags: Tags) -> tuple[int, int]:
    """Height and width; 0 where they are not told."""
    return _first(tags, HEIGHT, 0), _first(tags, WIDTH, 0)


def _whole_slide(tags: Tags) -> TileDecodeError:
    height, width = _size(tags)
    size = f"{width}x{height}"
    return TileDecodeError(
        "whole_slide",
        f"a TIFF of {size} pixels with further levels or pages: cervix-batch --whole-slides cuts it into tiles",
    )


class _Layout:
    """Where a file keeps its numbers: its byte order, and whether offsets have 32 or 64 bits."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        big = data[2:4] in (b"+\0", b"\0+")
        self._count, self._offset, self._first_at = ("Q", "Q", 8) if big else ("H", "I", 4)
        self._inside_bytes = 8 if big else 4  # values up to this size lie in the entry itself

    def pages(self) -> Iterator[Tags]:
        (at,) = self._read(self._offset, self._first_at)
        while at:
            tags, at = self._directory(at)
            yield tags

    def _read(self, codes: str, at: int) -> tuple[int, ...]:
        if at > len(self._data):  # beyond what struct takes for an offset, too
            raise truncated("TIFF ends before what its directory refers to")
        return struct.unpack_from(self._order + codes, self._data, at)

    def _directory(self, at: int) -> tuple[Tags, int]:
        (count,) = self._read(self._count, at)
        head, entry = struct.calcsize("=" + self._count), struct.calcsize("=HH" + self._offset * 2)
        entries_at, next_at = at + head, at + head + entry * count
        (following,) = self._read(self._offset, next_at)
        tags: dict[int, tuple[int, ...]] = {}
        for entry_at in range(entries_at, next_at, entry):
            tag, kind, values = self._read("HH" + self._offset, entry_at)
            if tag in _KNOWN_TAGS:
                tags[tag] = self._values(tag, kind, values, entry_at + entry - self._inside_bytes)
        return tags, following

    def _values(self, tag: int, kind: int, count: int, at: int) -> tuple[int, ...]:
        if kind not in _CODES or not 1 <= count <= _MAX_VALUES:
            raise corrupt(f"TIFF tag {tag} with {count} values of type {kind}")
        codes = f"{count}{_CODES[kind]}"
        if struct.calcsize("=" + codes) > self._inside_bytes:
            (at,) = self._read(self._offset, at)
        return self._read(codes, at)
