"""What tests of decoding share: a whole file of every kind, and the pixels that OpenCV alone makes of it."""

from __future__ import annotations

import cv2
import numpy as np

from .encoded_tiles import Pixels
from .whole_tiles import whole_tiles

WHOLE = whole_tiles()
FILES = {name: data for name, (data, _) in WHOLE.items()}


def plain_decode(data: bytes) -> Pixels:
    """OpenCV alone, by the book."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert decoded is not None
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)
