"""Bench setups with drawn tiles and a fake model, and steps that are slow on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bench.measure import Gate, Meter
from cervix_engine.bench.setup import BenchSetup, usable_tiles
from cervix_engine.bench.steps import PipelineSteps
from cervix_engine.run.record import Provenance
from cervix_engine.run.session import Session
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import BatchResult
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.sources.folder import Folder
from engine.bench.planted_steps import SLOW_S, slow_decode, slow_read
from engine.run.support import CONTRACT

# Two rounds are enough where what is slow is slow by a factor, if they are long beside what starting workers takes.
QUICK = Meter(Gate(tolerance=0.5, window=2, max_rounds=2, round_s=0.1))

BATCH_SIZE = 4


def bench_setup(tiles: Path, scratch: Path, *, backend: FakeBackend | None = None) -> BenchSetup:
    """The first tiles below `tiles`, two workers, batches of four."""
    scratch.mkdir()
    listing = discover(Folder(tiles), spool=scratch)
    provenance = Provenance("0" * 64, None, 0.0, 0.0)
    session = Session(CONTRACT, backend or FakeBackend(), BATCH_SIZE, 2, provenance, listing)
    usable = usable_tiles(listing, contract=CONTRACT, count=24)
    return replace(BenchSetup.of(session, usable, out=scratch / "preds.csv"), rows=1)


def slow_write(write: Callable[[Iterable[BatchResult]], int]) -> Callable[[Iterable[BatchResult]], int]:
    def delayed(results: Iterable[BatchResult]) -> Iterator[BatchResult]:
        for result in results:
            time.sleep(BATCH_SIZE * SLOW_S)
            yield result

    return lambda results: write(delayed(results))


def slowed(setup: BenchSetup, what: str) -> PipelineSteps:
    """A run's steps, of which `what` takes `SLOW_S` for each tile.

    Nothing is really written: how long an fsync takes is up to whoever else uses the disk.
    """
    real = PipelineSteps.real(setup).without("write", setup)
    return {
        "read": replace(real, tile=TileSteps(slow_read)),
        "decode": replace(real, tile=TileSteps(preprocess_into=slow_decode)),
        "infer": replace(real, backend=FakeBackend(seconds_per_batch=BATCH_SIZE * SLOW_S)),
        "write": replace(real, write=slow_write(real.write)),
    }[what]
