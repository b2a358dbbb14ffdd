"""Decoders of larger tiles against each other: ours, OpenCV, simplejpeg, imagecodecs, Pillow, and our scaled decoding.

    python -m benchmarks.sources.decoders TILES --sides 512 --sides 1024

Real tiles, enlarged, with a little noise so that they compress as photographs do. Each decoder gives RGB of a tile's
own size on one thread; `equal` says whether all of its pixels are OpenCV's. Scaled decoding gives fewer pixels, and is
a choice of the contract.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import cv2
import imagecodecs
import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.common import json_option, machine, publish
from cervix_engine.contract import ModelContract, TileClass
from cervix_engine.tiles.preprocess import decode, preprocess
from cervix_engine.values import Pixels

Decoder = Callable[[bytes], Pixels]

CONTRACT = ModelContract((TileClass("a", "A", "normal"), TileClass("b", "B", "abnormal")), input_size=(224, 224))
SCALED = replace(CONTRACT, scaled_decoding=True)

ENCODINGS: dict[str, tuple[str, list[int]]] = {
    "JPEG": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90]),
    "PNG": (".png", []),
    "TIFF, LZW": (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 5]),
    "TIFF, deflate": (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 8]),
}


def _opencv(data: bytes) -> Pixels:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)


def _pillow(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# The whole way to the model's input is the only fair measure of scaled decoding, so OpenCV's stands beside it.
DECODERS: dict[str, dict[str, Decoder]] = {
    "JPEG": {
        "cervix": lambda data: decode(data, contract=CONTRACT),
        "OpenCV": _opencv,
        "simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "RGB"),
        "imagecodecs": imagecodecs.jpeg8_decode,
        "Pillow": _pillow,
        "cervix, with the resize": lambda data: preprocess(data, contract=CONTRACT),
        "cervix, scaled decoding, with the resize": lambda data: preprocess(data, contract=SCALED),
    },
    "PNG": {
        "cervix": lambda data: decode(data, contract=CONTRACT),
        "OpenCV": _opencv,
        "imagecodecs": imagecodecs.png_decode,
        "Pillow": _pillow,
    },
}
for _name in ("TIFF, LZW", "TIFF, deflate"):
    DECODERS[_name] = {
        "cervix": lambda data: decode(data, contract=CONTRACT),
        "OpenCV": _opencv,
        "Pillow": _pillow,
    }


def enlarged(tiles: Path, *, side: int, count: int) -> list[Pixels]:
    """Real tiles, spread over the folder, at `side` x `side` pixels, BGR."""
    paths = sorted(tiles.rglob("*.jpg"))
    noise = np.random.default_rng(0)
    images = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        image = cv2.resize(_opencv(path.read_bytes())[..., ::-1], (side, side), interpolation=cv2.INTER_CUBIC)
        images.append(np.clip(image + noise.integers(-3, 4, image.shape), 0, 255).astype(np.uint8))
    return images


def race(encoded: list[bytes], decoders: dict[str, Decoder], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds a tile of each decoder, median of interleaved rounds, and whether its pixels are OpenCV's."""
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for number in range(rounds + 1):
        for name, decoder in decoders.items():
            began = time.thread_time()
            for data in encoded:
                decoder(data)
            if number:  # the first round warms up
                seconds[name].append((time.thread_time() - began) / len(encoded))
    return {
        name: {
            "ms": 1000 * statistics.median(seconds[name]),
            "low_ms": 1000 * min(seconds[name]),
            "high_ms": 1000 * max(seconds[name]),
            "equal": all(np.array_equal(decoder(data), _opencv(data)) for data in encoded),
        }
        for name, decoder in decoders.items()
    }


@click.command()
@click.argument("tiles", type=click.Path(path_type=Path, exists=True))
@click.option("--sides", multiple=True, default=(512, 1024), show_default=True, help="Pixels a side.")
@click.option("--count", default=16, show_default=True, help="Tiles of each kind.")
@click.option("--rounds", default=5, show_default=True)
@json_option
def main(tiles: Path, sides: tuple[int, ...], count: int, rounds: int, report: Path | None) -> None:
    """Race decoders over larger tiles."""
    cv2.setNumThreads(1)
    races: dict[str, dict[str, dict[str, Any]]] = {}
    click.echo(f"{count} tiles of each kind, {rounds} interleaved rounds, CPU time; {machine()}")
    for side in sides:
        images = enlarged(tiles, side=side, count=count)
        for kind, (suffix, options) in ENCODINGS.items():
            encoded = [cv2.imencode(suffix, image, options)[1].tobytes() for image in images]
            found = races[f"{kind}, {side} px"] = race(encoded, DECODERS[kind], rounds=rounds)
            for name, one in found.items():
                spread = f"({one['low_ms']:.2f} to {one['high_ms']:.2f})"
                pixels = "" if "resize" in name else "equal" if one["equal"] else "other pixels"
                click.echo(f"  {kind:13} {side:4} px  {name:42} {one['ms']:6.2f} ms a tile {spread:18} {pixels}")
    publish(report, {"benchmark": "decoders", "tiles": count, "rounds": rounds, "races": races})


if __name__ == "__main__":
    main()
