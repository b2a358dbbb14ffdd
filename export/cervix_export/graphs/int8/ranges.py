"""How far each value of a graph reaches on real tiles, and where it is best cut off.

A range that holds every value wastes its 256 levels on a few outliers. The range taken here is the one with the
least squared error, cut-off and rounding together, over the calibration tiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.values import Pixels

BINS = 4096
LEVELS = 255
# Candidates for a cut-off, as shares of the largest value.
_CUTS = np.linspace(0.2, 1.0, 81)


@dataclass(frozen=True, slots=True)
class Range:
    """What a tensor's levels span; `low` is 0 where it is never negative."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of one tensor.

    Attributes:
        low, high: its extremes.
        counts: `int64 (BINS,)`, a histogram of its absolute values up to the larger extreme.
        mean: `float64 (channels,)`, its mean over tiles and positions.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]

    def best_range(self, *, signed: bool = False) -> Range:
        """The range of the least squared error; `signed` levels lie on both sides of zero, whatever the values do."""
        top = max(self.high, -self.low)
        if top <= 0:
            return Range(0.0, 1.0)
        centres = (np.arange(BINS) + 0.5) * top / BINS
        errors = [self._error(centres, cut * top, signed=signed or self.low < 0) for cut in _CUTS]
        best = float(_CUTS[int(np.argmin(errors))] * top)
        return Range(max(self.low, -best) if self.low < 0 else 0.0, min(self.high, best))

    def _error(self, centres: npt.NDArray[np.float64], cut: float, *, signed: bool) -> float:
        step = cut * (2 if signed else 1) / LEVELS
        squared = np.where(centres > cut, (centres - cut) ** 2, step**2 / 12)
        return float((self.counts * squared).sum())


def observe(model: Any, batches: Sequence[Pixels], *, tensors: Iterable[str]) -> dict[str, Observed]:
    """Compute a graph on some tiles and watch `tensors`.

    Args:
        model: an ONNX `ModelProto`; it is not changed.
        batches: `uint8 (N, height, width, 3)` each, small ones: every watched tensor of a batch is in memory at once.
        tensors: names of float32 tensors, channels on axis 1.
    """
    names = sorted(tensors)
    session, pixels = _watching(model, names)
    extremes = [_extremes(session.run(names, {pixels: batch})) for batch in batches]
    lows = np.min([low for low, _ in extremes], axis=0)
    highs = np.max([high for _, high in extremes], axis=0)
    counts = np.zeros((len(names), BINS), np.int64)
    sums: list[Any] = [0.0] * len(names)
    for batch in batches:
        for place, values in enumerate(session.run(names, {pixels: batch})):
            top = max(highs[place], -lows[place])
            counts[place] += _histogram(values, top)
            sums[place] = sums[place] + values.mean(axis=tuple(range(2, values.ndim)), dtype=np.float64).sum(axis=0)
    tiles = sum(len(batch) for batch in batches)
    return {
        name: Observed(float(lows[place]), float(highs[place]), counts[place], sums[place] / tiles)
        for place, name in enumerate(names)
    }


def _watching(model: Any, names: Sequence[str]) -> tuple[Any, str]:
    """A session that can also give `names`, and its input's name."""
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {output.name for output in watched.graph.output}
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    return session, session.get_inputs()[0].name


def _extremes(values: Sequence[npt.NDArray[np.float32]]) -> tuple[list[float], list[float]]:
    return [float(item.min()) for item in values], [float(item.max()) for item in values]


def _histogram(values: npt.NDArray[np.float32], top: float) -> npt.NDArray[np.int64]:
    if top <= 0:
        return np.zeros(BINS, np.int64)
    bins = np.minimum(np.abs(values.ravel()) * np.float32(BINS / top), BINS - 1).astype(np.int32)
    return np.bincount(bins, minlength=BINS)
