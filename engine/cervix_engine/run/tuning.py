"""Batch size and decode workers for this model on this machine, found by a short measurement.

Rows can depend on the batch size, so an automatic one is decided once, before a run's journal exists, and the
journal's is what a resumed run takes. Workers touch no row.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from cervix_engine.backends import Backend
from cervix_engine.backends.base import compute_at_once
from cervix_engine.backends.device import GPU_BACKENDS
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.contract import ModelContract
from cervix_engine.errors import DeviceMemoryError, InferenceError, TileError
from cervix_engine.machine import usable_cpus
from cervix_engine.tiles.discover import Listing
from cervix_engine.tiles.preprocess import preprocess_into, read_tile
from cervix_engine.values import Pixels

log = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# A smaller batch that is as fast, but for this, is taken: it needs less memory, and fewer tiles are lost to a kill.
AS_FAST = 0.97
# Workers keep up with this much more than the model needs: some tiles are larger than the sample's.
HEADROOM = 1.25

DEFAULT_BATCH_SIZE = 32
SAMPLED_TILES = 32

Clock = Callable[[], float]
Auto = Literal["auto"]


class NoTileError(ValueError):
    """No tile of a sample can be decoded."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a short measurement found.

    Attributes:
        batch_size: tiles a batch.
        workers: decode threads.
        infer_tiles_per_sec: of the model alone, in such batches.
        prepare_tiles_per_sec: of one worker alone.
    """

    batch_size: int
    workers: int
    infer_tiles_per_sec: float
    prepare_tiles_per_sec: float


def choose_sizes(
    backend: Backend,
    sample: Callable[[], Sequence[bytes]],
    *,
    contract: ModelContract,
    batch_size: int | Auto | None,
    workers: int | Auto | None,
    measure: Callable[..., Tuned] | None = None,
) -> tuple[int, int]:
    """Tiles a batch and decode workers: as asked, as measured where `auto` is asked, else 32 and one a core.

    Args:
        backend: loaded.
        sample: gives encoded tiles to measure with; only asked where something is measured.
        contract: how they are decoded.
        batch_size, workers: what is asked.
        measure: for tests, in place of `tune`.

    Raises:
        InferenceError: the model fails at every batch size.
    """
    default = (batch_size or DEFAULT_BATCH_SIZE, workers or usable_cpus())
    if "auto" not in default:
        return default  # type: ignore[return-value]
    fixed = [None if value == "auto" else value for value in default]
    try:
        tuned = (measure or tune)(backend, sample(), contract=contract, batch_size=fixed[0], workers=fixed[1])
    except NoTileError:  # there will be nothing to be fast at
        return fixed[0] or DEFAULT_BATCH_SIZE, fixed[1] or usable_cpus()
    return tuned.batch_size, tuned.workers


def fit_memory(backend: Backend, batch_size: int, *, contract: ModelContract) -> int:
    """The batch size, halved until a GPU's memory holds a batch. Call it before a run's journal exists.

    Raises:
        DeviceMemoryError: it does not hold a single tile.
    """
    while backend.info.backend in GPU_BACKENDS:
        try:
            backend.infer(np.zeros((batch_size, *contract.input_size, 3), np.uint8))
            break
        except DeviceMemoryError:
            if batch_size == 1:
                raise
            log.warning("the GPU's memory does not hold batches of %d tiles: halved", batch_size)
            batch_size //= 2
    return batch_size


def golden_sample(bundle: Bundle) -> list[bytes]:
    """Some of a bundle's golden tiles."""
    return [bundle.read(tile.file) for tile in GoldenSet.load(bundle).tiles[:SAMPLED_TILES]]


def sample_of(listing: Listing) -> list[bytes]:
    """Some of a run's tiles, evenly spread: those of one folder are often alike."""
    wanted = {part * listing.found // SAMPLED_TILES for part in range(SAMPLED_TILES)}
    data = []
    for tile in listing:
        if tile.index in wanted:
            with suppress(TileError):
                data.append(read_tile(listing.root / tile.path))
    return data


def tune(
    backend: Backend,
    sample: Sequence[bytes],
    *,
    contract: ModelContract,
    batch_size: int | None = None,
    workers: int | None = None,
    budget_s: float = 10.0,
    clock: Clock = time.perf_counter,
) -> Tuned:
    """Choose what is not given.

    Args:
        backend: loaded; what is chosen is for its number of inference threads.
        sample: encoded tiles such as will come, at least one of which can be decoded.
        contract: how they are decoded.
        batch_size, workers: those that are decided already.
        budget_s: larger batches are not tried once so many seconds are spent.
        clock: for tests.

    Raises:
        InferenceError: the model fails at every batch size.
        NoTileError: no tile of the sample can be decoded.
    """
    prepare, pixels = _prepare_rate(sample, contract, clock)
    sizes = (batch_size,) if batch_size else BATCH_SIZES
    rates = dict(_infer_rates(backend, pixels, sizes, budget_s=budget_s, clock=clock))
    chosen = smallest_as_fast(rates)
    return Tuned(chosen, workers or enough_workers(rates[chosen], prepare), rates[chosen], prepare)


def smallest_as_fast(rates: dict[int, float]) -> int:
    """The smallest batch size that is as fast as the fastest one, but for `AS_FAST`."""
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= AS_FAST * best)


def enough_workers(infer: float, prepare: float, *, cores: int | None = None) -> int:
    """Workers that keep a model of `infer` tiles/s fed at `prepare` tiles/s each; at most one a core.

    More would only take cores from a model that computes on the CPU.
    """
    return max(1, min(cores or usable_cpus(), math.ceil(HEADROOM * infer / prepare)))


def _prepare_rate(sample: Sequence[bytes], contract: ModelContract, clock: Clock) -> tuple[float, list[Pixels]]:
    cv2.setNumThreads(1)  # as in the stream
    decoded = [pixels for data in sample if (pixels := _prepared(data, contract)) is not None]
    if not decoded:
        raise NoTileError("no tile of the sample can be decoded")
    # Again, since the first time pays for tables and pages that are made once.
    started = clock()
    for data in sample:
        _prepared(data, contract)
    return len(sample) / (clock() - started), decoded


def _prepared(data: bytes, contract: ModelContract) -> Pixels | None:
    out = np.empty((*contract.input_size, 3), np.uint8)
    try:
        preprocess_into(out, data, contract=contract)
    except TileError:
        return None
    return out


def _infer_rates(
    backend: Backend, pixels: list[Pixels], sizes: Sequence[int], *, budget_s: float, clock: Clock
) -> Iterator[tuple[int, float]]:
    began, works = clock(), False
    for size in sizes:
        batch = backend.allocate((size, *pixels[0].shape))
        batch[...] = [pixels[index % len(pixels)] for index in range(size)]
        try:
            rate = _infer_rate(backend, batch, clock)
        except InferenceError:
            if works:
                return  # too large for the device's memory, or for an engine's profile
            if size == sizes[-1]:
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
