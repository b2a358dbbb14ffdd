"""JPEG (ITU-T T.81): proves from its markers that a file is whole, and decodes it to the pixels that OpenCV gives.

libjpeg fills what is missing of a scan with grey, and OpenCV returns that without an error (opencv #6468). So the end
of the file is looked for, coefficients and restart markers are counted, a warning of libjpeg that it makes something up
is an error, and where nobody warns a grey last block is looked into.
"""

from __future__ import annotations

import re
import struct

import cv2
import numpy as np
import simplejpeg

from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.formats.header import TileHeader, corrupt, refuse_depth, truncated
from cervix_engine.tiles.formats.opencv import imdecode
from cervix_engine.values import Pixels

SIGNATURE = b"\xff\xd8\xff"

FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE, _LOSSLESS = (0xC2, 0xCA), 0xC3
_ARITHMETIC = (0xC9, 0xCA)  # in which libjpeg does not notice that it has run out of data
# Hierarchical processes, lossless ones in arithmetic coding, and JPEG-LS, which libjpeg does not have.
_UNKNOWN_PROCESSES = frozenset({0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
_COEFFICIENTS = (1 << 64) - 1  # one bit for each coefficient of an 8x8 block
# A marker that ends entropy-coded data: 0xFF, then neither a stuffed 0x00, a restart, nor a fill byte.
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)

# What OpenCV calls decoding at 1, 1/2 and 1/4; colour is asked for beside it.
REDUCED = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}

_EXIF = b"Exif\0\0"
# What libjpeg warns of when it makes up pixels that are not in the file.
_OUT_OF_DATA = "premature end of data segment"
_MADE_UP = re.compile("bad Huffman code|bad arithmetic code|instead of RST")

_FILLING = b"\x80\x80\x80"  # the pixels that libjpeg gives where it ran out of data
# Entropy-coded bytes and all eight restart markers. Behind a 0xFF, the zero makes it data and not a marker.
_FILLER = b"\0" + b"".join(b"\x5a\xa5\x33" * 8 + bytes([0xFF, 0xD0 + count]) for count in range(8))


def read_header(data: bytes) -> TileHeader:
    size: tuple[int, int] | None = None
    missing: dict[int, int] = {}  # component -> its coefficients that no scan has brought in full precision
    process = frame_at = interval = 0
    position = 2
    while True:
        marker, position = next_marker(data, position)
        if marker == 0xD9:
            if size is None:
                raise corrupt("JPEG without a frame header")
            if any(missing.values()):
                raise truncated("JPEG ends before its last scan")
            return TileHeader("jpeg", *size, scan_end=position - 2, process=process)
        if marker == 0xD8:
            raise corrupt("JPEG with another start of image inside")
        (length,) = struct.unpack_from(">H", data, position)
        if length < 2:
            raise corrupt("JPEG segment of impossible length")
        if marker in _UNKNOWN_PROCESSES:
            raise TileDecodeError("unsupported_compression", f"JPEG of process {marker:#x}")
        if marker in FRAMES:
            if size is not None:
                raise corrupt("JPEG with more than one frame header")
            size, missing = _frame(data, position)
            process, frame_at = marker, position
        if marker == 0xDD:
            (interval,) = struct.unpack_from(">H", data, position + 2)
        if marker == 0xDA:
            scan_at = position
            _scan(data, scan_at, missing, progressive=process in _PROGRESSIVE)
            position = _end_of_scan(data, scan_at + length)
            if interval and size is not None:
                units = _units(data, frame_at, scan_at)
                _check_restarts(data[scan_at + length : position], -(-units // interval) - 1)
        else:
            position += length


def next_marker(data: bytes, position: int) -> tuple[int, int]:
    """The marker at `position`, and where what belongs to it begins."""
    if position + 2 > len(data):
        raise truncated("JPEG ends before its end-of-image marker")
    if data[position] != 0xFF:
        raise corrupt("JPEG segment does not start with a marker")
    while data[position] == 0xFF:
        position += 1
    return data[position], position + 1


def _end_of_scan(data: bytes, position: int) -> int:
    found = _MARKER.search(data, position)
    if found is None:
        raise truncated("JPEG ends before its end-of-image marker")
    return found.start()


def _frame(data: bytes, position: int) -> tuple[tuple[int, int], dict[int, int]]:
    bits, height, width, components = struct.unpack_from(">BHHB", data, position + 2)
    refuse_depth(bits)
    if components not in (1, 3):
        raise TileDecodeError("unsupported_colour", f"JPEG with {components} components, expected 1 (grey) or 3")
    identifiers = data[position + 8 : position + 8 + 3 * components : 3]
    return (height, width), dict.fromkeys(identifiers, _COEFFICIENTS)


def _scan(data: bytes, position: int, missing: dict[int, int], *, progressive: bool) -> None:
    count = data[position + 2]
    first, last, approximation = struct.unpack_from("3B", data, position + 3 + 2 * count)
    brought = _COEFFICIENTS
    if progressive:
        # The low half of `approximation` counts the bits that later scans still have to bring.
        brought = 0 if approximation & 0x0F else (2 << last) - (1 << first)
    for component in data[position + 3 : position + 3 + 2 * count : 2]:
        missing[component] = missing.get(component, 0) & ~brought


def _units(data: bytes, frame_at: int, scan_at: int) -> int:
    """Of how many units a scan consists, which restart intervals count."""
    height, width, components = struct.unpack_from(">HHB", data, frame_at + 3)
    described = struct.iter_unpack("3B", data[frame_at + 8 : frame_at + 8 + 3 * components])
    sampling = {identifier: (factors >> 4 or 1, factors & 0x0F or 1) for identifier, factors, _ in described}
    most_across, most_down = (max(factors) for factors in zip(*sampling.values(), strict=True))
    across = down = 1
    if data[scan_at + 2] == 1:  # one component has its own blocks, several have units of all of them
        across, down = sampling.get(data[scan_at + 3], (1, 1))
    return int(-(-width * across // (8 * most_across)) * -(-height * down // (8 * most_down)))


def _check_restarts(scan: bytes, expected: int) -> None:
    """Refuse a scan that lost a part of itself between two restart markers: libjpeg fills it with grey."""
    numbers = [marker[1] & 7 for marker in _RESTART.findall(scan)]
    what = f"JPEG with {len(numbers)} restart markers in a scan, expected {expected}"
    in_order = all(number == index % 8 for index, number in enumerate(numbers))
    if not in_order or len(numbers) > expected + 1:  # some encoders write another one at the end
        raise corrupt(what)
    if len(numbers) < expected:
        raise truncated(what)


def decode(data: bytes, header: TileHeader, *, turned: bool = False, divisor: int = 1) -> Pixels:
    """Decode a file that `read_header` found whole, to RGB.

    Args:
        data: the file.
        header: of it.
        turned: whether to follow its EXIF orientation.
        divisor: by which both axes are divided, and rounded up.

    Raises:
        TileDecodeError: it cannot be decoded, or its last scan lost its end.
    """
    least = (-(-header.height // divisor), -(-header.width // divisor)) if divisor > 1 else (0, 0)
    pixels = None if header.process in _ARITHMETIC else quick_decode(data, least)
    if pixels is not None and not (turned and _EXIF in data):
        return pixels
    flags = cv2.IMREAD_COLOR_RGB | REDUCED[divisor] | (0 if turned else cv2.IMREAD_IGNORE_ORIENTATION)
    pixels = _by_opencv(data, header, flags)
    if _has_grey_corner(pixels, turned=turned):
        _refuse_short_scan(data, header.scan_end, pixels, flags)
    return pixels


def quick_decode(data: bytes, least: tuple[int, int] = (0, 0)) -> Pixels | None:
    """Decode a faultless JPEG to the very pixels that OpenCV gives, in half the time; None leaves it to OpenCV.

    Args:
        data: the file.
        least: height and width that it may be shrunk to.

    Raises:
        TileDecodeError: libjpeg would have to make up pixels.
    """
    # Neither of libjpeg's quick and coarse ways, as OpenCV has it. Strict: where libjpeg as much as warns, what OpenCV
    # makes of it is what counts.
    options = {"fastdct": False, "fastupsample": False, "min_height": least[0], "min_width": least[1], "strict": True}
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", **options))
    except ValueError as error:
        if _OUT_OF_DATA in str(error):
            raise truncated("JPEG whose scan ends too early") from error
        if _MADE_UP.search(str(error)):
            raise corrupt("JPEG of which a part cannot be decoded") from error
        return None
    except MemoryError:
        return None


def _by_opencv(data: bytes, header: TileHeader, flags: int) -> Pixels:
    try:
        return imdecode(data, flags)
    except TileDecodeError as error:
        if header.process != _LOSSLESS:
            raise
        raise TileDecodeError("unsupported_compression", "a lossless JPEG that the decoder does not know") from error


def _has_grey_corner(pixels: Pixels, *, turned: bool) -> bool:
    # The last block is at the bottom right, or in any corner after an EXIF orientation. Two pixels deep, because
    # libjpeg mixes the outermost one with its neighbour's colour where it is alone in its block.
    ends = (slice(2), slice(-2, None)) if turned else (slice(-2, None),)
    return any(_FILLING in pixels[rows, columns].tobytes() for rows in ends for columns in ends)


def _refuse_short_scan(data: bytes, scan_end: int, pixels: Pixels, flags: int) -> None:
    """Refuse a JPEG whose last scan lost its end, though its end-of-image marker is there.

    libjpeg fills what is missing with plain grey. Further entropy-coded bytes would be read in its place, and are
    skipped where nothing is missing: they change the pixels of a short scan only.
    """
    if not np.array_equal(imdecode(b"".join((data[:scan_end], _FILLER, data[scan_end:])), flags), pixels):
        raise truncated("JPEG whose last scan ends too early")
