"""Hostile tiles: what a folder of a stranger may hold, each thing with what must become of it."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from cervix_engine.tiles.preprocess import MAX_TILE_BYTES
from engine.tiles.broken_tiles import BROKEN
from engine.tiles.encoded_tiles import (
    HEIGHT,
    PNG_RGB,
    WIDTH,
    bmp,
    draw,
    encode,
    jpeg,
    png,
    png_chunk,
    webp_chunk,
    webp_of,
)
from engine.tiles.refused_tiles import CLAIMS, OTHERS, REFUSED, TRANSPARENT, one_hole
from engine.tiles.tiff_tiles import tiff
from engine.tiles.whole_tiles import whole_tiles

# Outcomes beside the kinds of failure.
OK, IGNORED, FOLDER = "ok", "ignored", "folder"

SUFFIXES = {"jpeg": ".jpg", "png": ".png", "bmp": ".bmp", "tiff": ".tif", "webp": ".webp", "jpeg2000": ".jp2"}

_LARGEST_PX = 8192  # a side of the largest square tile that is accepted


@dataclass(frozen=True, slots=True)
class Hostile:
    """One thing in the folder.

    Attributes:
        path: relative to the root, of any bytes.
        plant: puts it at the path that it is given, whose folder is there.
        outcome: `ok`, the kind of its failure, `ignored` (counted, no row) or `folder` (entered, and holds nothing).
    """

    path: str
    plant: Callable[[Path], object]
    outcome: str


def corpus(*, bombs: bool = True) -> list[Hostile]:
    """Everything, each kind once; `bombs` are those that take hundreds of megabytes or seconds."""
    parts = [_whole(), _refused(), _damaged(), _named(), _special(), _bombs() if bombs else iter(())]
    return [hostile for part in parts for hostile in part]


def plant(root: Path, things: list[Hostile]) -> None:
    """Put them all below `root`."""
    for thing in things:
        path = root / thing.path
        path.parent.mkdir(parents=True, exist_ok=True)
        thing.plant(path)


def _tile(path: str, data: bytes, outcome: str) -> Hostile:
    return Hostile(path, partial(_write, data=data), outcome)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _suffix(name: str) -> str:
    return SUFFIXES.get(name.replace(" ", "_").partition("_")[0], ".jpg")


def _whole() -> Iterator[Hostile]:
    files = {name: data for name, (data, _) in whole_tiles().items()}
    for name, data in files.items():
        yield _tile(f"whole/{name}{_suffix(name)}", data, OK)
        yield _tile(f"cut/{name}{_suffix(name)}", data[:-1], "truncated")
    for name, suffix in (("jpeg_420", ".png"), ("png_rgb", ".JPEG"), ("bmp_24", ".webp"), ("webp_lossy", ".TIF")):
        yield _tile(f"misnamed/{name}{suffix}", files[name], OK)
        yield _tile(f"trailing/{name}{_suffix(name)}", files[name] + b"\r\ntrailing text", OK)


def _refused() -> Iterator[Hostile]:
    yield _tile("refused/empty.png", b"", "empty")
    for name, data in OTHERS.items():
        yield _tile(f"others/{name}.jpg", data, "unknown_format")
    for name, (data, kind) in REFUSED.items():
        yield _tile(f"refused/{name.replace('/', '-')}{_suffix(name)}", data, kind)
    for name, claiming in CLAIMS.items():
        yield _tile(f"claims/{name} of 60000{_suffix(name)}", claiming(60_000, 60_000), "too_large")
        yield _tile(f"claims/{name} of nothing{_suffix(name)}", claiming(0, WIDTH), "bad_dimensions")
    for name, seen_through in TRANSPARENT.items():
        yield _tile(f"transparent/{name}{_suffix(name)}", seen_through(one_hole(128)), "transparent")


def _damaged() -> Iterator[Hostile]:
    """Files whose headers are whole, and whose pixels are not."""
    for name, (data, kind) in BROKEN.items():
        yield _tile(f"broken/{name}{_suffix(name)}", data, kind)
    pixels = draw()
    photo, drawn, lossless = jpeg(pixels), png(pixels, PNG_RGB), encode(".webp", pixels)
    yield _tile("damaged/short scan.jpg", photo[: len(photo) * 3 // 4] + b"\xff\xd9", "truncated")
    yield _tile("damaged/one bit.png", _flipped(drawn, drawn.index(b"IDAT") + 40), "corrupt")
    yield _tile("damaged/mended length.webp", webp_of(webp_chunk(lossless[12:16], lossless[20:-90])), "corrupt")
    short = tiff(pixels, tags={279: ("I", [HEIGHT * WIDTH * 3 - 100])})[:-100]
    yield _tile("damaged/short strip.tif", short, "corrupt")
    yield _tile("damaged/claims more rows.bmp", bmp(pixels, size=(HEIGHT + 1, WIDTH)), "truncated")


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _named() -> Iterator[Hostile]:
    """Good tiles under names that a file system can hold and a table, a shell or a spreadsheet may not like."""
    data = jpeg(draw(2))
    names = {
        "line end": b"two\nlines.jpg",
        "not UTF-8": b"caf\xe9 \xff.jpg",
        "formula": b'=HYPERLINK("x","y").jpg',
        "option": b"--model.jpg",
        "commas and quotes": b"a,\"b\";'c'\t.jpg",
        "escape": b"%2e%2e%2f.jpg",
        "terminal": b"\x1b[2J\x07.jpg",
        "longest": b"x" * 251 + b".jpg",
        "right to left": "\u202egpj.tile.jpg".encode(),
    }
    for name in names.values():
        yield _tile(f"named/{os.fsdecode(name)}", data, OK)
    yield _tile("/".join(["deep"] * 60) + "/tile.jpg", data, OK)
    yield _tile("folder.jpg/tile.jpg", data, OK)
    yield _tile("=folder/-tile.jpg", data, OK)


def _special() -> Iterator[Hostile]:
    """What is no tile, or lies elsewhere."""
    data = jpeg(draw(3))
    yield _tile("special/real.jpg", data, OK)
    yield Hostile("special/link.jpg", partial(_link, to="real.jpg"), OK)
    yield Hostile("special/hard link.jpg", lambda path: path.hardlink_to(path.with_name("real.jpg")), OK)
    yield Hostile("special/dangling.jpg", partial(_link, to="gone.jpg"), IGNORED)
    yield Hostile("special/loop.jpg", partial(_link, to="loop.jpg"), IGNORED)
    yield Hostile("special/out of the tree.jpg", partial(_link, to="/etc/hostname"), IGNORED)
    yield Hostile("special/endless.jpg", partial(_link, to="/dev/zero"), IGNORED)
    yield Hostile("special/parent", partial(_link, to=".."), IGNORED)
    yield Hostile("special/parent.jpg", partial(_link, to=".."), IGNORED)
    yield Hostile("special/fifo.jpg", os.mkfifo, IGNORED)
    yield Hostile("special/socket.jpg", partial(os.mknod, mode=stat.S_IFSOCK | 0o600), IGNORED)
    if os.geteuid() == 0:
        device = partial(os.mknod, mode=stat.S_IFCHR | 0o600, device=os.makedev(1, 5))
        yield Hostile("special/device.jpg", device, IGNORED)
    yield _tile("special/no suffix", data, IGNORED)
    yield _tile("special/tile.jpg~", data, IGNORED)
    yield _tile("special/Thumbs.db", b"", IGNORED)
    yield _tile("special/slide.svs", data, IGNORED)
    yield _tile("special/.hidden.jpg", data, IGNORED)
    yield _tile(".hidden/tile.jpg", data, IGNORED)
    yield Hostile("empty.jpg", Path.mkdir, FOLDER)


def _link(path: Path, to: str) -> None:
    path.symlink_to(to)


def _bombs() -> Iterator[Hostile]:
    """The largest that is accepted, and what swells or drags in other ways."""
    pixels = draw()
    plain = np.full((_LARGEST_PX, _LARGEST_PX, 3), 200, np.uint8)
    for suffix in (".jpg", ".png"):
        yield _tile(f"bombs/largest{suffix}", encode(suffix, plain), OK)
    deflated = (cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_ADOBE_DEFLATE)
    yield _tile("bombs/largest.tif", encode(".tiff", plain, *deflated), OK)
    swelling = zlib.compress(bytes(2**28), 9)
    text = png(pixels, PNG_RGB, extra=[(b"zTXt", b"Comment\0\0" + swelling)])
    yield _tile("bombs/swelling text.png", text, OK)
    profile = png(pixels, PNG_RGB, extra=[(b"iCCP", b"profile\0\0" + swelling)])
    yield _tile("bombs/swelling profile.png", profile, OK)
    head, _, end = png(pixels, PNG_RGB).partition(b"\0\0\0\0IEND")
    yield _tile("bombs/swelling pixels.png", head + png_chunk(b"IDAT", swelling) + b"\0\0\0\0IEND" + end, OK)
    many = b"".join(png_chunk(b"tEXt", b"a\0b") for _ in range(200_000))
    yield _tile("bombs/many chunks.png", head + many + b"\0\0\0\0IEND" + end, OK)
    photo = jpeg(pixels)
    yield _tile("bombs/many comments.jpg", photo[:2] + b"\xff\xfe\0\2" * 500_000 + photo[2:], OK)
    yield Hostile("bombs/sparse.jpg", partial(_sparse, data=b"", size=MAX_TILE_BYTES + 1), "too_large")
    yield Hostile("bombs/trailing zeros.jpg", partial(_sparse, data=photo, size=MAX_TILE_BYTES), OK)


def _sparse(path: Path, data: bytes, size: int) -> None:
    path.write_bytes(data)
    os.truncate(path, size)
