"""Each stage alone, with nothing beside it, and all of them together.

| stage | what one round does to the tiles of the sample | by |
|---|---|---|
| read | bytes from the file, which by then is in the page cache | decode workers, which are processes |
| decode | bytes to pixels in their place, resized | decode workers |
| resize | the resize alone, a part of `decode` | decode workers |
| copy | a filled slot to another array, as an upload or a runtime's own copy would | one |
| infer | filled slots through the model | the model's |
| write | ready outcomes of a whole shard to the fsynced table | one |
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np

from cervix_engine.backends import Backend
from cervix_engine.backends.base import compute_at_once
from cervix_engine.bench.free_steps import Decoded, Remembered, already_filled
from cervix_engine.bench.measure import Latency, Meter, Rate, Work
from cervix_engine.bench.setup import BenchSetup
from cervix_engine.bench.steps import PipelineSteps
from cervix_engine.errors import InferenceError
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import BatchResult
from cervix_engine.values import Pixels

StageName = Literal["read", "decode", "resize", "copy", "infer", "write"]

# Decoded tiles take 50 times the memory of their files.
RESIZED_TILES = 64


@dataclass(frozen=True, slots=True)
class StageRate:
    """What a stage sustains alone, with all of its threads."""

    stage: StageName
    threads: int
    rate: Rate


@dataclass(frozen=True, slots=True)
class BatchRate:
    """The model alone at one batch size, on pixels that are ready: the rate, and how long single calls take."""

    batch_size: int
    rate: Rate
    latency: Latency


def end_to_end(setup: BenchSetup, steps: PipelineSteps, *, meter: Meter) -> Rate:
    """Tiles per second from files to the durable table."""

    def work() -> int:
        with closing(stream_of(setup, steps)) as results:
            return steps.write(results)

    return meter.rate(work)


def stage_rates(setup: BenchSetup, steps: PipelineSteps, *, meter: Meter) -> tuple[StageRate, ...]:
    """Every stage alone, in the order in which a tile meets them."""
    read, decode = steps.tile.read, steps.tile.preprocess_into
    of_workers: dict[StageName, TileSteps] = {
        "read": TileSteps(read, already_filled),
        "decode": TileSteps(Remembered(), decode),
        "resize": TileSteps(Decoded(setup.contract), decode),
    }
    rates = []
    for stage, tile_steps in of_workers.items():
        with decoding(_few(setup, stage), steps, tile_steps) as work:
            rates.append(StageRate(stage, setup.workers, meter.rate(work)))
    slot, results = setup.batch(setup.batch_size), _ready_results(setup, steps)
    rates.append(StageRate("copy", 1, meter.rate(_copying(slot))))
    with inferring(steps.backend, slot) as work:
        rates.append(StageRate("infer", steps.backend.info.threads, meter.rate(work)))
    rates.append(StageRate("write", 1, meter.rate(lambda: steps.write(results))))
    return tuple(rates)


def _few(setup: BenchSetup, stage: StageName) -> BenchSetup:
    return replace(setup, tiles=setup.tiles[:RESIZED_TILES]) if stage == "resize" else setup


def model_sweep(
    backend: Backend, setup: BenchSetup, batch_sizes: Sequence[int], *, meter: Meter
) -> tuple[BatchRate, ...]:
    """The model alone at each batch size that an engine's profile takes and the device can hold."""
    rates: list[BatchRate] = []
    for batch_size in batch_sizes:
        try:
            rates.append(_batch_rate(backend, setup.batch(batch_size), meter))
        except InferenceError:
            if rates:
                break
            if batch_size == batch_sizes[-1]:
                raise
    return tuple(rates)


def _batch_rate(backend: Backend, pixels: Pixels, meter: Meter) -> BatchRate:
    with inferring(backend, pixels) as work:
        return BatchRate(len(pixels), meter.rate(work), meter.latency(lambda: backend.infer(pixels)))


def stream_of(setup: BenchSetup, steps: PipelineSteps) -> Generator[BatchResult, None, None]:
    """The stream of a measured run."""
    session = replace(setup.session, backend=steps.backend)
    return session.predict(setup.batches(), source=setup.listing.source, steps=steps.tile)


def _ready_results(setup: BenchSetup, steps: PipelineSteps) -> list[BatchResult]:
    passes = -(-setup.rows // len(setup.tiles))
    with closing(stream_of(replace(setup, passes=passes), steps.filled(setup))) as results:
        return list(results)


def _copying(slot: Pixels) -> Work:
    target = np.zeros_like(slot)

    def work() -> int:
        np.copyto(target, slot)
        return len(slot)

    return work


@contextmanager
def decoding(setup: BenchSetup, steps: PipelineSteps, tile_steps: TileSteps) -> Iterator[Work]:
    """Rounds of the decode workers alone, which do what `tile_steps` say, handed out and collected as in a run."""
    endless = replace(setup, passes=sys.maxsize)
    with closing(stream_of(endless, steps.workers_only(setup, tile_steps))) as results:
        yield lambda: sum(len(result.outcomes) for result in islice(results, setup.batches_a_pass))


@contextmanager
def inferring(backend: Backend, pixels: Pixels) -> Iterator[Work]:
    """Rounds through the model of as many batches as it works on at once."""
    with backend.pinned(pixels):
        yield lambda: compute_at_once(backend, pixels)
