"""Steps to pixels that are not those of training, for decode workers: they import them by name."""

from __future__ import annotations

import cv2

from cervix_engine.contract import ModelContract
from cervix_engine.tiles.preprocess import decode, preprocess_into
from cervix_engine.tiles.tile import TileSize
from cervix_engine.values import Pixels


def swapped(out: Pixels, data: bytes, *, contract: ModelContract, look: object = None) -> TileSize:
    """Blue for red, as where cv2's order is taken for RGB."""
    size = preprocess_into(out, data, contract=contract)
    out[:] = out[..., ::-1]
    return size


def nearest(out: Pixels, data: bytes, *, contract: ModelContract, look: object = None) -> TileSize:
    """Nearest neighbours for means over areas."""
    image = decode(data, contract=contract)
    out[:] = cv2.resize(image, contract.input_size[::-1], interpolation=cv2.INTER_NEAREST)
    return TileSize(*image.shape[:2])
