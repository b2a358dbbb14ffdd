"""A backend without a model, for tests and for measuring everything but the model."""

from __future__ import annotations

import time
from types import TracebackType

import numpy as np

from cervix_engine.backends.base import BackendInfo, Synchronous
from cervix_engine.values import Pixels, Probabilities


class FakeBackend(Synchronous):
    """Answers from the pixels' own sums, so that equal tiles get equal rows and different tiles differ.

    Args:
        classes: number of probabilities a tile.
        seconds_per_batch: how long a batch pretends to take.
        info: what it says that it is.
    """

    def __init__(self, *, classes: int = 5, seconds_per_batch: float = 0.0, info: BackendInfo | None = None) -> None:
        self._classes = classes
        self._seconds_per_batch = seconds_per_batch
        self.info = info or BackendInfo(
            backend="fake",
            version="1",
            device="cpu",
            device_class="fake",
            precision="fp32",
            arithmetic="fp32",
            artefact="none",
            artefact_sha256="0" * 64,
            threads=1,
        )

    def infer(self, pixels: Pixels) -> Probabilities:
        if self._seconds_per_batch:
            time.sleep(self._seconds_per_batch)
        # A few rows of each tile tell tiles apart; summing all pixels would make the fake the bottleneck.
        sums = pixels[:, :: max(1, pixels.shape[1] // 4)].reshape(len(pixels), -1)[:, ::7].sum(axis=1, dtype=np.int64)
        weights = 1.0 + (sums[:, None] * np.arange(3, 3 + self._classes)) % 997
        return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)

    def __enter__(self) -> FakeBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
