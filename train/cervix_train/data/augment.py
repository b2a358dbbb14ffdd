"""Altered copies of training tiles: turned by any angle, flipped, lit differently, as SIPaKMeD's users do it in Keras.

Copies are made after the split and of training tiles alone, so none can be tested on. What a copy looks like follows
from the seed, the tile's bytes and the copy's number, never from when or in which order copies are made: so its
features can be kept like a tile's, and fine-tuning sees the very pixels that the head was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cervix_engine.files import sha256_bytes
from cervix_engine.values import Pixels
from cervix_train.data.dataset import Dataset

BRIGHTNESS = 0.2  # up to so much darker or brighter
# Part of every copy's key: raise it when copies are drawn in another way.
_RECIPE = 1


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to alter tiles.

    Attributes:
        seed: the training's.
        number: which copy of a tile, from 1; 0 is the tile itself.
    """

    seed: int
    number: int

    def key(self, digest: str) -> str:
        """What the altered tile's features are kept under, from the hex SHA-256 of its file."""
        return f"{digest}/{_RECIPE}/{self.seed}/{self.number}" if self.number else digest

    def apply(self, pixels: Pixels, *, digest: str) -> Pixels:
        """The altered tile, `uint8 (height, width, 3)` as `pixels`, which stay as they are."""
        if not self.number:
            return pixels
        random = np.random.default_rng(int(sha256_bytes(self.key(digest).encode())[:32], 16))
        angle, light = random.uniform(0, 360), random.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)
        flips = random.integers(0, 2, 2)
        height, width = pixels.shape[:2]
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1)
        # Corners that come from outside are mirrored tissue: black ones would be something to learn.
        turned = np.asarray(cv2.warpAffine(pixels, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101))
        flipped = turned[:: 1 - 2 * flips[0], :: 1 - 2 * flips[1]]
        return np.asarray(np.clip(np.rint(flipped * light), 0, 255), np.uint8)


ORIGINAL = Variant(seed=0, number=0)


@dataclass(frozen=True, slots=True)
class Copy:
    """An altered copy of the tile that stands at `index` in `Dataset.tiles`."""

    index: int
    variant: Variant


def training_copies(dataset: Dataset, *, count: int, seed: int) -> tuple[Copy, ...]:
    """`count` copies of every training tile; the data set must have its split."""
    return tuple(
        Copy(index, Variant(seed, number))
        for number in range(1, count + 1)
        for index, tile in enumerate(dataset.tiles)
        if tile.split == "train"
    )
