"""OpenCV's decoders, which answer what they cannot decode with an exception of ours."""

from __future__ import annotations

import cv2
import numpy as np

from cervix_engine.tiles.formats.header import corrupt
from cervix_engine.values import Pixels


def imdecode(data: bytes, flags: int) -> Pixels:
    """Decode the bytes of a file.

    Raises:
        TileDecodeError: they are no image.
        MemoryError: there is not enough for it.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise corrupt("the decoder refused the data") from error
    if pixels is None:
        raise corrupt("the decoder found no image in the data")
    return np.asarray(pixels, np.uint8)
