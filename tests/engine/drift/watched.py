"""A tiny bundle that keeps what drift is watched by, and folders of tiles that are like its own, or unlike them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.drift.calibrate import make_panel, make_pixel_panels
from cervix_engine.drift.changes import measure_changed
from cervix_engine.drift.measures import ANSWER, measure_answers, measure_image
from cervix_engine.drift.reference import DriftReference
from cervix_engine.tiles.preprocess import decode, preprocess_into
from cervix_engine.values import Pixels
from engine.run.support import CONTRACT, drawn_tile, encoded, make_bundle, reference_probabilities

TILES, GROUP = 240, 4


@lru_cache(maxsize=1)
def reference() -> DriftReference:
    """Of drawn tiles, of which four in a row are a group."""
    pixels = np.zeros((TILES, *CONTRACT.input_size, 3), np.uint8)
    sizes = [preprocess_into(out, drawn_tile(90_000 + seed), contract=CONTRACT) for seed, out in enumerate(pixels)]
    images = np.array(
        [measure_image(tile, height=size.height, width=size.width) for tile, size in zip(pixels, sizes, strict=True)]
    )
    answers = reference_probabilities(pixels)
    groups = [f"field {seed // GROUP}" for seed in range(TILES)]
    given = {"classes": answers.argmax(axis=1), "groups": groups, "class_count": len(CONTRACT.classes)}
    changed = measure_changed(
        lambda seed: decode(drawn_tile(90_000 + seed), contract=CONTRACT), TILES, contract=CONTRACT, seed=0
    )
    of_images, of_colours = make_pixel_panels(images, changed=changed, **given)
    of_answers = make_panel([measure.name for measure in ANSWER], measure_answers(answers), **given)
    return DriftReference(of_images, of_answers, of_colours)


def watched_bundle(root: Path) -> Bundle:
    """The tiny bundle with that reference."""
    make_bundle(root)
    reference().save(root)
    return seal(root)


def unchanged(pixels: Pixels) -> Pixels:
    return pixels


def blurred(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 2), np.uint8)


def write_slide(folder: Path, count: int, *, seed: int, change: Callable[[Pixels], Pixels] = unchanged) -> None:
    """Write drawn tiles, each changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = change(decode(drawn_tile(seed + index), contract=CONTRACT))
        (folder / f"tile_{index:05d}.png").write_bytes(encoded(".png", np.ascontiguousarray(pixels[..., ::-1])))
