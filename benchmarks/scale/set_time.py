"""A model and decode steps that take a set time, for the stream's own limits: `simulated_scale.py`, `ray_nodes.py`."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from cervix_engine.backends.base import Pending
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.contract import ModelContract
from cervix_engine.tiles.sources.source import TileReader
from cervix_engine.tiles.tile import TileSize, TileStamp
from cervix_engine.values import Pixels, Probabilities

# Shorter sleeps take longer than they are asked to.
LEAST_SLEEP_S = 0.004


class SetTimeStep:
    """Fills nothing, and takes a set time for each tile on average."""

    def __init__(self, tile_s: float) -> None:
        self._tile_s = tile_s
        self._owed_s = 0.0

    def __call__(
        self,
        out: Pixels,
        data: bytes | Pixels,  # noqa: ARG002 - as `preprocess_into`
        /,
        *,
        contract: ModelContract,  # noqa: ARG002
        look: Callable[[Pixels], None] | None = None,  # noqa: ARG002
    ) -> TileSize:
        self._owed_s += self._tile_s
        if self._owed_s >= LEAST_SLEEP_S:
            began = time.perf_counter()
            time.sleep(self._owed_s)
            self._owed_s -= time.perf_counter() - began
        return TileSize(*out.shape[:2])


def nothing(reader: TileReader, path: str, stamp: TileStamp | None, /) -> bytes:  # noqa: ARG001 - as `read_tile_of`
    """In place of a tile's bytes."""
    return b""


class SimulatedGpus(FakeBackend):
    """Devices that take a set time for a batch, one after the other, and two batches each at a time."""

    def __init__(self, devices: int, *, batch_s: float, batch_size: int) -> None:
        super().__init__()
        self.in_flight = 2 * devices
        self._batch_s = batch_s
        self._free_at = [0.0] * devices
        self._answers = np.full((batch_size, 5), 0.2, np.float32)

    def begin(self, pixels: Pixels, *, batch: int = 0) -> Pending:  # noqa: ARG002 - nobody looks at them
        device = batch % len(self._free_at)
        done_at = max(time.perf_counter(), self._free_at[device]) + self._batch_s
        self._free_at[device] = done_at

        def fetch() -> Probabilities:
            time.sleep(max(0.0, done_at - time.perf_counter()))
            return self._answers

        return fetch
