"""TIFFs of every layout and compression, put together byte by byte."""

from __future__ import annotations

import itertools
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt

from .encoded_tiles import Pixels, jpeg, jpeg2000, webp_lossless

TIFF_NONE, TIFF_LZW, TIFF_JPEG, TIFF_DEFLATE, TIFF_PACKBITS = 1, 5, 7, 8, 32773
TIFF_LZMA, TIFF_ZSTD, TIFF_WEBP = 34925, 50000, 50001
TIFF_APERIO_YCBCR, TIFF_APERIO_RGB, TIFF_JPEG2000 = 33003, 33005, 34712
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8

_TIFF_KINDS = {"B": 1, "H": 3, "I": 4, "Q": 16}
TiffTags = Mapping[int, tuple[str, Sequence[int]]]

# Compression -> a segment, `uint8 (rows, columns, channels)`, as it lies in the file. All of them lossless.
TIFF_CODECS: dict[int, Callable[[Pixels], bytes | bytearray]] = {
    TIFF_NONE: lambda segment: segment.tobytes(),
    TIFF_LZW: lambda segment: imagecodecs.lzw_encode(segment.tobytes()),
    TIFF_DEFLATE: lambda segment: zlib.compress(segment.tobytes()),
    32946: lambda segment: zlib.compress(segment.tobytes()),
    TIFF_PACKBITS: lambda segment: imagecodecs.packbits_encode(segment.tobytes()),
    TIFF_LZMA: lambda segment: lzma.compress(segment.tobytes()),
    TIFF_ZSTD: lambda segment: imagecodecs.zstd_encode(segment.tobytes()),
    TIFF_WEBP: lambda segment: webp_lossless(segment),
    TIFF_APERIO_YCBCR: lambda segment: jpeg2000(segment, bare=False),
    TIFF_APERIO_RGB: jpeg2000,
    TIFF_JPEG2000: jpeg2000,
}


BYTE_CODECS = (TIFF_NONE, TIFF_LZW, TIFF_DEFLATE, 32946, TIFF_PACKBITS, TIFF_LZMA, TIFF_ZSTD)
IN_YCBCR: TiffTags = {262: ("H", [YCBCR])}


def palette_tags(colours: Sequence[int]) -> TiffTags:
    """Those of a palette: all reds, greens and blues, of 16 bits."""
    return {262: ("H", [PALETTE]), 320: ("H", colours)}


def tiff(
    samples: Pixels | npt.NDArray[np.uint16],
    *,
    order: str = "<",
    big: bool = False,
    compression: int = TIFF_NONE,
    encode_segment: Callable[[Pixels], bytes | bytearray] | None = None,
    rows_per_strip: int | None = None,
    tile: tuple[int, int] | None = None,
    planar: bool = False,
    predicted: bool = False,
    tags: TiffTags | None = None,
    next_page: int = 0,
) -> bytes:
    """A TIFF of `samples (height, width[, channels])`: its directory in front, then its strips or tiles.

    Args:
        samples: grey, RGB or RGBA.
        order: `<` or `>`.
        big: whether to write a BigTIFF.
        compression: as TIFF numbers them.
        encode_segment: makes what lies in the file of a strip or tile; that of the compression by default.
        rows_per_strip: all of them in one strip by default.
        tile: height and width of tiles, filled with zeros at the image's edges; strips by default.
        planar: whether each channel has strips or tiles of its own.
        predicted: whether to store differences to the sample on the left.
        tags: others, or other values; an empty sequence leaves a tag's values out.
        next_page: offset of another directory.
    """
    samples = samples if samples.ndim == 3 else samples[..., None]
    height, width, channels = samples.shape
    step = rows_per_strip or height
    encoding = encode_segment or TIFF_CODECS[compression]
    planes: list[npt.NDArray[Any]] = np.split(samples, channels, axis=2) if planar else [samples]
    pieces = [piece for plane in planes for piece in _tiff_segments(plane, tile or (step, width), padded=bool(tile))]
    if predicted:
        pieces = [np.diff(piece, axis=1, prepend=piece[:, :1] * 0) for piece in pieces]
    segments = [encoding(piece.astype(f"{order}u{samples.itemsize}")) for piece in pieces]
    offsets, sizes = (324, 325) if tile else (273, 279)
    entries: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * samples.itemsize] * channels),
        259: ("H", [compression]),
        262: ("H", [RGB if channels >= 3 else BLACK_IS_ZERO]),
        277: ("H", [channels]),
        284: ("H", [2 if planar else 1]),
        317: ("H", [2 if predicted else 1]),
        offsets: ("Q" if big else "I", [0] * len(segments)),
        sizes: ("I", [len(segment) for segment in segments]),
        **({322: ("I", [tile[1]]), 323: ("I", [tile[0]])} if tile else {278: ("I", [step])}),
        **(tags or {}),
    }
    # Twice: where the segments begin is known only after the first.
    start = len(_tiff_directory(entries, order, next_page, big=big))
    if offsets not in (tags or {}):
        starts = [start + sum(map(len, segments[:index])) for index in range(len(segments))]
        entries[offsets] = (entries[offsets][0], starts)
    return _tiff_directory(entries, order, next_page, big=big) + b"".join(segments)


def packed(levels: Pixels, bits: int) -> Pixels:
    """Samples of so few `bits` as a TIFF stores them."""
    ones = np.unpackbits(levels[..., None], axis=2)[..., -bits:].reshape(len(levels), -1)
    return np.packbits(ones, axis=1)


def tiff_of_two_pages(pixels: Pixels, *, subfile: int, own_subfile: int = 0, order: str = "<") -> bytes:
    """A TIFF whose second page, some of the first one's bytes in grey, is of the kind `subfile`."""
    tags = {254: ("I", [own_subfile])}
    second_at = len(tiff(pixels, tags=tags, order=order))
    side = 8
    entries = {254: subfile, 256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: second_at - side**2}
    entries |= {277: 1, 278: side, 279: side**2}
    table = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    second = struct.pack(order + "H", len(entries)) + table + struct.pack(order + "I", 0)
    return tiff(pixels, tags=tags, order=order, next_page=second_at) + second


def tiff_of_levels(side: int, *, by_sub_pages: bool = False, tiled: bool = True, subfile: int = 1) -> bytes:
    """A grey TIFF of 256 px tiles, `side` pixels high and wide, and of a smaller level in one tile or strip.

    Args:
        side: of the first page.
        by_sub_pages: whether the second level is a page of the first one's own, as in OME-TIFF, or one behind it.
        tiled: whether the second level has tiles too, or is a single strip.
        subfile: the kind of the second page.
    """
    first = np.zeros((side, side), np.uint8)
    at = len(tiff(first, tile=(256, 256), compression=TIFF_DEFLATE, tags={330: ("I", [0])} if by_sub_pages else {}))
    small = min(side // 4, 256)
    data = zlib.compress(bytes(256**2 if tiled else small**2))
    layout = {322: 256, 323: 256, 324: at, 325: len(data)} if tiled else {273: at, 278: small, 279: len(data)}
    entries = {254: subfile, 256: small, 257: small, 258: 8, 259: TIFF_DEFLATE, 262: 1, 277: 1, **layout}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    second = data + struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)
    where = at + len(data)
    tags: TiffTags = {330: ("I", [where])} if by_sub_pages else {}
    behind = 0 if by_sub_pages else where
    return tiff(first, tile=(256, 256), compression=TIFF_DEFLATE, tags=tags, next_page=behind) + second


def _tiff_segments(plane: npt.NDArray[Any], size: tuple[int, int], *, padded: bool) -> Iterator[npt.NDArray[Any]]:
    for top in range(0, plane.shape[0], size[0]):
        for left in range(0, plane.shape[1], size[1]):
            piece = plane[top : top + size[0], left : left + size[1]]
            missing = [(0, size[0] - piece.shape[0]), (0, size[1] - piece.shape[1]), (0, 0)]
            yield np.pad(piece, missing) if padded else piece


def _tiff_directory(entries: TiffTags, order: str, next_page: int, *, big: bool) -> bytes:
    number, count, head_bytes = ("Q", "Q", 16) if big else ("I", "H", 8)
    inside_bytes = struct.calcsize("=" + number)
    table, outside = b"", b""
    outside_at = head_bytes + struct.calcsize("=" + count) + (4 + 2 * inside_bytes) * len(entries) + inside_bytes
    for tag, (code, values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        table += struct.pack(order + "HH" + number, tag, _TIFF_KINDS[code], len(values))
        if len(packed) <= inside_bytes:
            table += packed.ljust(inside_bytes, b"\0")
        else:
            table += struct.pack(order + number, outside_at + len(outside))
            outside += packed + b"\0" * (len(packed) % 2)
    start = b"II" if order == "<" else b"MM"
    start += struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    return start + struct.pack(order + count, len(entries)) + table + struct.pack(order + number, next_page) + outside


def split_tables(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG as TIFF likes it: its tables, and what is left of it."""
    kept = {True: data[:2], False: data[:2]}
    position = 2
    while data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        kept[data[position + 1] in (0xDB, 0xC4)] += data[position:end]
        position = end
    return kept[True] + b"\xff\xd9", kept[False] + data[position:]


def jpeg_tiff(samples: Pixels, *, sampling: int, model: int = YCBCR, shared: bool = False, **options: Any) -> bytes:
    """A TIFF of JPEGs, whose tables are either in each of them or `shared`."""
    tables = b""

    def encode_segment(piece: Pixels) -> bytes:
        nonlocal tables
        data = jpeg(piece[..., 0] if piece.shape[2] == 1 else piece, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling)
        if not shared:
            return data
        tables, left = split_tables(data)
        return left

    tags = {262: ("H", [model]), 347: ("B", [0])}
    tiff(samples, compression=TIFF_JPEG, encode_segment=encode_segment, tags=tags, **options)
    tags = {262: ("H", [model])} | ({347: ("B", list(tables))} if shared else {})
    return tiff(samples, compression=TIFF_JPEG, encode_segment=encode_segment, tags=tags, **options)


# Damage

Encoder = Callable[[Pixels], bytes | bytearray]

# Of a strip or tile, at a share of its length.
DAMAGE: dict[str, Callable[[bytes, float], bytes]] = {
    "cut": lambda segment, share: segment[: int(share * len(segment))],
    "flipped": lambda segment, share: with_byte(segment, int(share * len(segment)), lambda byte: byte ^ 0x10),
    "zeroed": lambda segment, share: overwritten(segment, int(share * len(segment)), bytes(40)),
    "emptied": lambda segment, share: bytes(len(segment)),
    "lost its start": lambda segment, share: segment[1 + int(share * len(segment)) :],
}


def with_byte(segment: bytes, at: int, change: Callable[[int], int]) -> bytes:
    return segment[:at] + bytes([change(segment[at])]) + segment[at + 1 :]


def overwritten(segment: bytes, at: int, content: bytes) -> bytes:
    return (segment[:at] + content + segment[at + len(content) :])[: len(segment)]


def damaged(segments: Encoder, damage: str, share: float, *, number: int = 0) -> Encoder:
    """An encoder whose segment of this number is damaged."""
    count = itertools.count()

    def encode_segment(piece: Pixels) -> bytes:
        segment = bytes(segments(piece))
        return DAMAGE[damage](segment, share) if next(count) == number else segment

    return encode_segment
