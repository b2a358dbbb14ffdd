"""Class activation maps: which parts of a tile speak for the class that the network gave it.

A network that ends in global average pooling and dense layers is cut at its last feature map A, `(C, h, w)`. Dense
layers with ReLU are linear around any one tile: what the class's logit exceeds its rivals' by is `w · mean(A) + b`,
with w and b of that tile. So the map `w · A(y, x)` adds up to that difference but for b: it is exact for the network
as it is, while what a single cell of A has seen is wider than the cell (Zhou et al., "Learning deep features for
discriminative localization", CVPR 2016; Draelos and Carin, "HiResCAM", 2020, for heads of several layers).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cervix_engine.report.feature_network import Dense, Floats, pooled
from cervix_engine.values import Pixels

# How strongly the hottest place is painted over the tile.
OPACITY = 0.6
# Cells beyond this quantile are alike the brightest.
BRIGHT = 0.95


def class_map(features: Floats, head: Sequence[Dense]) -> Floats:
    """What each cell of a tile's last feature map `(h, w, features)` adds to the lead of its class, `(h, w)`."""
    weights = _lead(head, pooled(features))
    return np.asarray(features @ weights / (features.shape[0] * features.shape[1]), np.float32)


def painted(pixels: Pixels, heat: Floats) -> Pixels:
    """A tile in grey, `uint8 (height, width, 3)` RGB, with its class map painted over it where that is above 0."""
    height, width = pixels.shape[:2]
    heat = np.maximum(heat, 0)
    # One cell alone, such as a corner that has seen padding, must not leave all others dark.
    brightest = max(float(np.quantile(heat, BRIGHT)), float(heat.max()) / 3, 1e-9)
    smooth = cv2.resize(heat / brightest, (width, height), interpolation=cv2.INTER_CUBIC)
    shares = np.asarray(smooth, np.float32).clip(0, 1)
    colours = cv2.applyColorMap(np.rint(255 * shares).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    share = OPACITY * np.sqrt(shares)[..., None]
    return np.asarray(np.rint(grey * (1 - share) + colours * share), np.uint8)


def _lead(head: Sequence[Dense], features: Floats) -> Floats:
    """The weights of the pooled features in what the first class is ahead of its rivals, each as probable as it is."""
    values, passed = features, []
    for dense in head:
        values = values @ dense.weights + dense.bias
        passed.append(values > 0 if dense.relu else np.ones_like(values, bool))
        values = np.where(passed[-1], values, 0)
    rivals = np.exp(values - values.max())
    first = int(values.argmax())
    rivals[first] = 0
    gradient = -rivals / max(float(rivals.sum()), 1e-30)
    gradient[first] = 1
    for dense, through in zip(reversed(head), reversed(passed), strict=True):
        gradient = dense.weights @ np.where(through, gradient, 0)
    return np.asarray(gradient, np.float32)
