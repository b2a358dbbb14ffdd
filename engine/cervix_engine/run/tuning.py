"""The batch size for this model on this machine, found by a short measurement.

Rows can depend on it, so an automatic one is decided once, before a run's journal exists, and the journal's is what a
resumed run takes. Decode workers touch no row: their number is found while they work, see `stream/worker_count.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from cervix_engine.backends import Backend
from cervix_engine.backends.base import compute_at_once
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.contract import ModelContract
from cervix_engine.errors import DeviceMemoryError, InferenceError, TileError
from cervix_engine.machine import memory_left, usable_cpus
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.values import Pixels

log = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

# A smaller batch that is as fast, but for this, is taken: it needs less memory, and fewer tiles are lost to a kill.
AS_FAST = 0.97

DEFAULT_BATCH_SIZE = 32
SAMPLED_TILES = 32

# A runtime reads a model, converts it, and packs its weights anew, of which it frees some later.
LOADED_COPIES = 3
# Where more is left, nothing is measured; else batches of these sizes show what a tile takes.
PLENTY_BYTES = 4e9
PROBED_TILES = (2, 6)
MARGIN, WORKER_BYTES = 1.25, 24e6

Clock = Callable[[], float]
Auto = Literal["auto"]


class NoTileError(ValueError):
    """No tile of a sample can be decoded."""


def choose_batch_size(
    backend: Backend,
    sample: Callable[[], Sequence[bytes | Pixels]],
    *,
    contract: ModelContract,
    asked: int | Auto | None,
    usual: int | None = None,
) -> int:
    """Tiles a batch: as asked, as measured where `auto` is asked, else the engine's usual number, else 32.

    Args:
        backend: loaded.
        sample: gives tiles to measure with; only asked where something is measured.
        contract: how they are decoded.
        asked: what is asked.
        usual: what an engine was found to be fastest at; None where nothing was.

    Raises:
        InferenceError: the model fails at every batch size.
    """
    size, reason = asked, "as asked"
    if asked == "auto":
        with suppress(NoTileError):  # there will be nothing to be fast at
            size, reason = tune(backend, sample(), contract=contract), "as measured"
    if not isinstance(size, int):
        size, reason = (usual, "the engine's usual size") if usual else (DEFAULT_BATCH_SIZE, "the default")
    log.info("batches of %d tiles: %s", size, reason)
    return size


def fit_memory(backend: Backend, batch_size: int, *, contract: ModelContract) -> int:
    """The batch size, halved until a GPU's memory holds a batch. Call it before a run's journal exists.

    Raises:
        DeviceMemoryError: it does not hold a single tile.
    """
    while backend.info.gpu:
        try:
            backend.infer(np.zeros((batch_size, *contract.input_size, 3), np.uint8))
            break
        except DeviceMemoryError:
            if batch_size == 1:
                raise
            log.warning("the GPU's memory does not hold batches of %d tiles: halved", batch_size)
            batch_size //= 2
    return batch_size


def require_memory_to_load(model: Path, *, left: Callable[[], float] = memory_left) -> None:
    """Refuse to load a model that this process's control group has no memory for: the kernel would just kill it.

    Raises:
        DeviceMemoryError: it is too large.
    """
    needed, free = LOADED_COPIES * model.stat().st_size if model.is_file() else 0, left()
    if needed > free:
        raise DeviceMemoryError(
            f"loading the model takes about {_megabytes(needed)}, of which the control group (a container's limit) "
            f"has {_megabytes(free)} left: give it more"
        )


def require_memory(
    backend: Backend, batch_size: int, *, contract: ModelContract, left: Callable[[], float] = memory_left
) -> None:
    """Refuse batches that this process's control group has no memory for: the kernel would kill the run without a word.

    What a batch takes is measured with small ones, and only where little is left.

    Args:
        backend: loaded.
        batch_size: tiles a batch.
        contract: says their size.
        left: gives the bytes that are left; infinity without a limit.

    Raises:
        DeviceMemoryError: a batch is too large; it says which size is not.
    """
    if backend.info.gpu or left() > PLENTY_BYTES:
        return
    few, more = PROBED_TILES
    free_by_tiles = {}
    for tiles in PROBED_TILES:
        backend.infer(np.zeros((tiles, *contract.input_size, 3), np.uint8))
        free_by_tiles[tiles] = left()
    a_tile = max(0.0, free_by_tiles[few] - free_by_tiles[more]) / (more - few)
    # The rest is for what comes later: decode workers, the slots between them and the model, rows.
    free = free_by_tiles[more] / MARGIN - usable_cpus() * WORKER_BYTES
    if a_tile * (batch_size - more) > free:
        smaller = max(size for size in BATCH_SIZES if a_tile * (size - more) <= max(0.0, free))
        raise DeviceMemoryError(
            f"a batch of {batch_size} tiles takes about {_megabytes(a_tile * batch_size)}, more than the control group "
            f"(a container's limit) has left: choose --batch-size {smaller}, or give it more memory"
        )


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def golden_sample(bundle: Bundle) -> list[bytes]:
    """Some of a bundle's golden tiles."""
    return [bundle.read(tile.file) for tile in GoldenSet.load(bundle).tiles[:SAMPLED_TILES]]


def sample_of(listing: Listing) -> list[bytes | Pixels]:
    """Some of a run's tiles, evenly spread: those of one folder are often alike."""
    wanted = {part * listing.found // SAMPLED_TILES for part in range(SAMPLED_TILES)}
    data, reader = [], listing.source.reader()
    for tile in listing:
        if tile.index in wanted:
            with suppress(TileError):
                data.append(reader.read(tile.path, tile.stamp))
    return data


def tune(
    backend: Backend,
    sample: Sequence[bytes | Pixels],
    *,
    contract: ModelContract,
    budget_s: float = 10.0,
    clock: Clock = time.perf_counter,
) -> int:
    """The smallest batch size at which the model is as fast as it can be.

    Args:
        backend: loaded; what is chosen is for its number of inference threads.
        sample: tiles such as will come, at least one of which can be decoded.
        contract: how they are decoded.
        budget_s: larger batches are not tried once so many seconds are spent.
        clock: for tests.

    Raises:
        InferenceError: the model fails at every batch size.
        NoTileError: no tile of the sample can be decoded.
    """
    pixels = [tile for data in sample if (tile := _decoded(data, contract)) is not None]
    if not pixels:
        raise NoTileError("no tile of the sample can be decoded")
    return smallest_as_fast(dict(_infer_rates(backend, pixels, budget_s=budget_s, clock=clock)))


def smallest_as_fast(rates: dict[int, float]) -> int:
    """The smallest batch size that is as fast as the fastest one, but for `AS_FAST`."""
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= AS_FAST * best)


def _decoded(data: bytes | Pixels, contract: ModelContract) -> Pixels | None:
    try:
        return preprocess(data, contract=contract)
    except TileError:
        return None


def _infer_rates(
    backend: Backend, pixels: list[Pixels], *, budget_s: float, clock: Clock
) -> Iterator[tuple[int, float]]:
    began, works = clock(), False
    for size in BATCH_SIZES:
        batch = np.stack([pixels[index % len(pixels)] for index in range(size)])
        try:
            with backend.pinned(batch):
                rate = _infer_rate(backend, batch, clock)
        except InferenceError:
            if works:
                return  # too large for the device's memory, or for an engine's profile
            if size == BATCH_SIZES[-1]:
                raise
            continue  # too small for an engine's profile
        works = True
        yield size, rate
        # The next size takes about twice as long as this one.
        if clock() - began + 2 * 3 * size / rate > budget_s:
            return


def _infer_rate(backend: Backend, batch: Pixels, clock: Clock) -> float:
    tiles = compute_at_once(backend, batch)  # the first of a shape compiles and allocates
    seconds = []
    for _ in range(2):
        started = clock()
        compute_at_once(backend, batch)
        seconds.append(clock() - started)
    # The least: whatever else the machine did only ever adds.
    return tiles / min(seconds)
