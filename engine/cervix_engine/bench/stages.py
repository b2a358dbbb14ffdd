"""Each stage alone, with nothing beside it, and all of them together.

| stage | what one round does to the tiles of the sample | threads |
|---|---|---|
| read | bytes from the file, which by then is in the page cache | decode workers |
| decode | bytes to pixels in their place, resized | decode workers |
| resize | the resize alone, a part of `decode` | decode workers |
| copy | a filled slot to another array, as an upload or a runtime's own copy would | one |
| infer | filled slots through the model | the model's |
| write | ready outcomes of a whole shard to the fsynced table | one |
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import cv2
import numpy as np

from cervix_engine.backends import Backend
from cervix_engine.backends.base import compute_at_once
from cervix_engine.bench.measure import Latency, Meter, Rate, Work
from cervix_engine.bench.setup import BenchSetup
from cervix_engine.bench.steps import PipelineSteps
from cervix_engine.run.stream.stream import BatchResult
from cervix_engine.tiles.preprocess import decode, read_tile, resize_into
from cervix_engine.values import Pixels

StageName = Literal["read", "decode", "resize", "copy", "infer", "write"]
T = TypeVar("T")

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
    cv2.setNumThreads(1)  # as in the stream: OpenCV's own threads inside workers would oversubscribe the cores
    slot = setup.batch(setup.batch_size)
    with ThreadPoolExecutor(setup.workers) as pool:
        decoding: dict[StageName, Work] = {
            "read": _dealt(pool, setup, _paths(setup), lambda path, _: steps.source.read(path)),
            "decode": _dealt(
                pool,
                setup,
                [read_tile(path) for path in _paths(setup)],
                lambda data, out: steps.source.preprocess_into(out, data, contract=setup.contract),
            ),
            "resize": _dealt(pool, setup, _decoded(setup), lambda pixels, out: resize_into(out, pixels)),
        }
        rates = [StageRate(stage, setup.workers, meter.rate(work)) for stage, work in decoding.items()]
    results = _ready_results(setup, steps)
    return (
        *rates,
        StageRate("copy", 1, meter.rate(_copying(slot))),
        StageRate("infer", steps.backend.info.threads, meter.rate(inferring(steps.backend, slot))),
        StageRate("write", 1, meter.rate(lambda: steps.write(results))),
    )


def model_sweep(
    backend: Backend, setup: BenchSetup, batch_sizes: Sequence[int], *, meter: Meter
) -> tuple[BatchRate, ...]:
    """The model alone at each batch size."""
    return tuple(_batch_rate(backend, setup.batch(batch_size), meter) for batch_size in batch_sizes)


def _batch_rate(backend: Backend, pixels: Pixels, meter: Meter) -> BatchRate:
    rate = meter.rate(inferring(backend, pixels))
    return BatchRate(len(pixels), rate, meter.latency(lambda: backend.infer(pixels)))


def stream_of(setup: BenchSetup, steps: PipelineSteps) -> Generator[BatchResult, None, None]:
    """The stream of a measured run."""
    session = replace(setup.session, backend=steps.backend, source=steps.source)
    return session.predict(setup.batches(), root=setup.listing.root)


def _ready_results(setup: BenchSetup, steps: PipelineSteps) -> list[BatchResult]:
    passes = -(-setup.rows // len(setup.tiles))
    with closing(stream_of(replace(setup, passes=passes), steps.filled(setup))) as results:
        return list(results)


def _dealt(
    pool: ThreadPoolExecutor, setup: BenchSetup, items: Sequence[T], step: Callable[[T, Pixels], object]
) -> Work:
    """One round of `step` over all items, dealt to the pool's threads, each with an array for pixels of its own."""
    shares = [items[start :: setup.workers] for start in range(setup.workers)]
    outs = [np.zeros((*setup.contract.input_size, 3), np.uint8) for _ in shares]

    def share(items: Sequence[T], out: Pixels) -> int:
        for item in items:
            step(item, out)
        return len(items)

    return lambda: sum(pool.map(share, shares, outs))


def _copying(slot: Pixels) -> Work:
    target = np.zeros_like(slot)

    def work() -> int:
        np.copyto(target, slot)
        return len(slot)

    return work


@contextmanager
def preparing(setup: BenchSetup, steps: PipelineSteps) -> Iterator[Work]:
    """Rounds of all that decode workers do, from files to pixels in place, by as many threads."""

    def prepare(path: Path, out: Pixels) -> None:
        steps.source.preprocess_into(out, steps.source.read(path), contract=setup.contract)

    with ThreadPoolExecutor(setup.workers) as pool:
        yield _dealt(pool, setup, _paths(setup), prepare)


def inferring(backend: Backend, pixels: Pixels) -> Work:
    """Rounds through the model of as many batches as it works on at once."""

    batch = backend.allocate(pixels.shape)
    batch[...] = pixels

    def work() -> int:
        return compute_at_once(backend, batch)

    return work


def _paths(setup: BenchSetup) -> list[Path]:
    return [setup.path(tile) for tile in setup.tiles]


def _decoded(setup: BenchSetup) -> list[Pixels]:
    return [decode(read_tile(path), contract=setup.contract) for path in _paths(setup)[:RESIZED_TILES]]
