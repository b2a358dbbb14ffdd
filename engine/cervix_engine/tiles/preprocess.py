"""From encoded bytes to the pixels a model sees: the one decode and resize in the project.

Training, calibration, parity and serving all call this module, so a preprocessing mismatch between them
cannot be written.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import cv2
import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.errors import ListingError, TileDecodeError, TileReadError
from cervix_engine.tiles.formats import jpeg
from cervix_engine.tiles.formats.header import TileHeader, refuse_transparency
from cervix_engine.tiles.formats.opencv import imdecode
from cervix_engine.tiles.headers import inspect
from cervix_engine.tiles.tile import TileSize, TileStamp
from cervix_engine.values import Pixels

_HOST_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

MAX_TILE_BYTES = 256 * 2**20


def read_tile(path: Path | str, *, stamp: TileStamp | None = None) -> bytes:
    """Read one tile's bytes, once.

    Args:
        path: the file.
        stamp: what it was when it was listed; None takes whatever lies there.

    Raises:
        TileReadError: the file cannot be opened or read, is no regular file, is too large, or is not the
            one that was listed.
        ListingError: the machine has no descriptors or memory left, which is not the tile's fault.
    """
    with open_listed(path, stamp=stamp) as (file, size):
        if size > MAX_TILE_BYTES:
            raise TileReadError("too_large", f"{size} bytes, limit {MAX_TILE_BYTES}")
        data = file.readall()
        if stamp is not None and len(data) != stamp.size_bytes:
            raise TileReadError("changed", "the file changed while it was read")
        return data


@contextmanager
def open_listed(path: Path | str, *, stamp: TileStamp | None = None) -> Iterator[tuple[FileIO, int]]:
    """Open a file, if it is what was listed; gives it and its size in bytes.

    Args:
        path: the file.
        stamp: as `read_tile`.

    Raises:
        TileReadError: the file cannot be opened or read, is no regular file, or is not the one that was listed.
        ListingError: as `read_tile`.
    """
    # `open` owns the descriptor that its opener returns, and closes it where it refuses a directory.
    with _read_errors(), open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        _require_listed(status, stamp)
        yield file, status.st_size


def require_listed(path: Path | str, *, stamp: TileStamp | None) -> None:
    """Look whether a file that is open already still is what was listed: at a fifth of what opening it again takes.

    Raises:
        TileReadError, ListingError: as `open_listed`.
    """
    with _read_errors():
        _require_listed(os.stat(path), stamp)  # noqa: PTH116 - text


def _require_listed(status: os.stat_result, stamp: TileStamp | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise TileReadError("not_a_file", "expected a regular file")
    if stamp is not None and (stamp.size_bytes, stamp.mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise TileReadError("changed", "not the file that was listed: another size or time of change")


@contextmanager
def _read_errors() -> Iterator[None]:
    try:
        yield
    except TileReadError:
        raise
    except IsADirectoryError as error:
        raise TileReadError("not_a_file", "expected a regular file") from error
    except OSError as error:
        if error.errno in _HOST_ERRORS:
            raise ListingError(f"tiles cannot be read on this machine: {error.strerror}") from error
        raise TileReadError("unreadable", error.strerror or type(error).__name__) from error
    except ValueError as error:  # a NUL or a letter that file names do not have
        raise TileReadError("unreadable", "no file can have this name") from error


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a FIFO that nobody writes to would otherwise hang a worker for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def decode(data: bytes, *, contract: ModelContract) -> Pixels:
    """Decode one encoded tile to `uint8 (height, width, 3)` RGB, at its own size.

    Grey and palette images become RGB; an alpha channel is dropped where it is opaque throughout.

    Raises:
        TileDecodeError: the bytes are not one whole image with a single meaning as RGB.
        TileShapeError: its dimensions are outside the limits.
    """
    return _decode(data, inspect(data), contract, divisor=1)


def _decode(data: bytes, header: TileHeader, contract: ModelContract, *, divisor: int) -> Pixels:
    """As `decode`, both axes divided by `divisor` and rounded up."""
    turned = contract.exif_policy == "apply"
    if header.format == "jpeg":
        pixels = jpeg.decode(data, header, turned=turned, divisor=divisor)
    elif header.decode is not None:
        pixels = header.decode(data)
    else:
        if header.has_alpha:
            _check_alpha(data, header)
        pixels = imdecode(data, cv2.IMREAD_COLOR_RGB | (0 if turned else cv2.IMREAD_IGNORE_ORIENTATION))
    _check_decoded(pixels, header, turned=turned, divisor=divisor)
    return pixels


def _divisor(header: TileHeader, contract: ModelContract) -> int:
    """By how much libjpeg may shrink a tile while it decodes it: it stays at least as large as the input."""
    if not contract.scaled_decoding or header.format != "jpeg" or contract.exif_policy == "apply":
        return 1
    height, width = contract.input_size
    room = min(header.height // height, header.width // width)
    return max(divisor for divisor in jpeg.REDUCED if divisor <= max(room, 1))


def preprocess_into(
    out: Pixels, data: bytes | Pixels, *, contract: ModelContract, look: Callable[[Pixels], None] | None = None
) -> TileSize:
    """Decode `data` and resize it straight into `out`, `uint8 (height, width, 3)` of the contract's input size.

    `data` may also be pixels already, `uint8 (height, width, 3)` RGB. `look` is shown the tile at its own size, before
    the resize.

    Returns:
        The tile's own size, before the resize.

    Raises:
        TileDecodeError, TileShapeError: as `decode`; `out` is then left as it was.
    """
    if not isinstance(data, bytes):
        if look is not None:
            look(data)
        resize_into(out, data)
        return TileSize(*data.shape[:2])
    header = inspect(data)
    divisor = _divisor(header, contract)
    pixels = _decode(data, header, contract, divisor=divisor)
    if look is not None:
        # What it judges, such as sharpness, is a matter of the tile's own pixels.
        look(pixels if divisor == 1 else _decode(data, header, contract, divisor=1))
    resize_into(out, pixels)
    return TileSize(header.height, header.width) if divisor > 1 else TileSize(*pixels.shape[:2])


def preprocess(data: bytes | Pixels, *, contract: ModelContract) -> Pixels:
    """Decode and resize one tile to a new `uint8 (height, width, 3)` RGB array of the input size."""
    out = np.empty((*contract.input_size, 3), np.uint8)
    preprocess_into(out, data, contract=contract)
    return out


def resize_into(out: Pixels, pixels: Pixels) -> None:
    """Resize `pixels (h, w, 3)` into `out (H, W, 3)`: INTER_AREA when both axes shrink or stay, else INTER_LINEAR."""
    height, width, channels = out.shape
    if out.dtype != np.uint8 or channels != 3 or not out.flags.c_contiguous:
        # cv2 would write to an array of its own, and leave `out` as it was.
        raise ValueError(f"out is {out.dtype} {out.shape}, expected contiguous uint8 (height, width, 3)")
    if pixels.shape == out.shape:
        out[...] = pixels
        return
    # cv2 takes (width, height); the contract holds (height, width).
    cv2.resize(pixels, (width, height), dst=out, interpolation=_interpolation(pixels, height, width))


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """`pixels` at this width and height, of any number of channels, as `resize_into` does; themselves at theirs."""
    width, height = size
    if pixels.shape[:2] == (height, width):
        return pixels
    return cv2.resize(pixels, size, interpolation=_interpolation(pixels, height, width)).astype(np.uint8, copy=False)


def _interpolation(pixels: Pixels, height: int, width: int) -> int:
    shrinks = pixels.shape[0] >= height and pixels.shape[1] >= width
    return cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR


def _check_alpha(data: bytes, header: TileHeader) -> None:
    pixels = imdecode(data, cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 2:  # OpenCV drops the transparent value of a grey PNG
        refuse_transparency(np.where(pixels == header.transparent_grey, np.uint8(0), np.uint8(255)))
        return
    alpha = pixels[..., 3:]
    # A BMP of 32 bits whose alpha is 0 throughout was written, and is shown, as if it had none.
    if header.format != "bmp" or alpha.any():
        refuse_transparency(alpha)


def _check_decoded(pixels: Pixels, header: TileHeader, *, turned: bool, divisor: int) -> None:
    expected = (-(-header.height // divisor), -(-header.width // divisor))
    allowed = {expected, expected[::-1]} if turned else {expected}
    if pixels.shape[:2] not in allowed:
        raise TileDecodeError("corrupt", f"decoded to {pixels.shape[:2]}, the header says {expected}")
