"""The steps of a run, each of which a measurement can replace by one that costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from cervix_engine.backends import Backend
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bench.free_steps import Remembered, already_filled, nothing
from cervix_engine.bench.setup import BenchSetup
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import BatchResult

# What a run can be bound by. Resizing belongs to `decode`: one worker does both, one after the other.
Bound = Literal["read", "decode", "infer", "write"]


@dataclass(frozen=True, slots=True)
class PipelineSteps:
    """What a measured run is made of.

    Attributes:
        tile: how the decode workers come to pixels.
        backend: loaded.
        write: takes results as they come, and returns the number of tiles.
    """

    tile: TileSteps
    backend: Backend
    write: Callable[[Iterable[BatchResult]], int]

    @classmethod
    def real(cls, setup: BenchSetup) -> PipelineSteps:
        """Those of a run."""
        return cls(TileSteps(), setup.session.backend, setup.write_table)

    def without(self, stage: Bound, setup: BenchSetup) -> PipelineSteps:
        """The same steps, with one stage that costs nothing."""
        if stage == "read":
            return replace(self, tile=replace(self.tile, read=Remembered()))
        if stage == "decode":
            return replace(self, tile=replace(self.tile, preprocess_into=already_filled))
        if stage == "infer":
            return replace(self, backend=FakeBackend(classes=len(setup.contract.classes)))
        return replace(self, write=_count)

    def filled(self, setup: BenchSetup) -> PipelineSteps:
        """The same steps without reading, decoding and a model: what is left is the stream's own work."""
        return self.workers_only(setup, TileSteps(nothing, already_filled))

    def workers_only(self, setup: BenchSetup, tile: TileSteps) -> PipelineSteps:
        """Steps in which decode workers do what `tile` says, and nobody anything else."""
        return replace(self, tile=tile).without("infer", setup)


def _count(results: Iterable[BatchResult]) -> int:
    return sum(len(result.outcomes) for result in results)
