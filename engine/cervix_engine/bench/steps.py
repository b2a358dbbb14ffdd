"""The steps of a run, each of which a measurement can replace by one that costs nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cervix_engine.backends import Backend
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bench.setup import BenchSetup
from cervix_engine.contract import ModelContract
from cervix_engine.run.stream.source import TileSource
from cervix_engine.run.stream.stream import BatchResult
from cervix_engine.tiles.preprocess import preprocess_into, read_tile
from cervix_engine.tiles.tile import TileSize, TileStamp
from cervix_engine.values import Pixels

# What a run can be bound by. Resizing belongs to `decode`: one worker does both, one after the other.
Bound = Literal["read", "decode", "infer", "write"]


@dataclass(frozen=True, slots=True)
class PipelineSteps:
    """What a measured run is made of.

    Attributes:
        source: how the decode workers come to pixels.
        backend: loaded.
        write: takes results as they come, and returns the number of tiles.
    """

    source: TileSource
    backend: Backend
    write: Callable[[Iterable[BatchResult]], int]

    @classmethod
    def real(cls, setup: BenchSetup) -> PipelineSteps:
        """Those of a run."""
        return cls(TileSource(read_tile, preprocess_into), setup.session.backend, setup.write_table)

    def without(self, stage: Bound, setup: BenchSetup) -> PipelineSteps:
        """The same steps, with one stage that costs nothing."""
        if stage == "read":
            return replace(self, source=replace(self.source, read=_Remembered(setup)))
        if stage == "decode":
            return replace(self, source=replace(self.source, preprocess_into=_already_filled))
        if stage == "infer":
            return replace(self, backend=FakeBackend(classes=len(setup.contract.classes)))
        return replace(self, write=_count)

    def filled(self, setup: BenchSetup) -> PipelineSteps:
        """The same steps without reading, decoding and a model: what is left is the stream's own work."""
        return replace(self, source=TileSource(_nothing, _already_filled)).without("infer", setup)


class _Remembered:
    """Reads every tile of a setup once, and then gives its bytes without a look at the disk."""

    def __init__(self, setup: BenchSetup) -> None:
        self._bytes = {os.fspath(setup.path(tile)): read_tile(setup.path(tile)) for tile in setup.tiles}

    def __call__(self, path: Path | str, /, *, stamp: TileStamp | None = None) -> bytes:  # noqa: ARG002 - as `read_tile`
        return self._bytes[os.fspath(path)]


def _nothing(path: Path | str, /, *, stamp: TileStamp | None = None) -> bytes:  # noqa: ARG001 - as `read_tile`
    return b""


def _already_filled(
    out: Pixels,
    data: bytes,  # noqa: ARG001 - as `preprocess_into`
    /,
    *,
    contract: ModelContract,  # noqa: ARG001
    look: Callable[[Pixels], None] | None = None,  # noqa: ARG001
) -> TileSize:
    """Leave the slot as it is: what it holds looks like tiles to the model just as well."""
    return TileSize(*out.shape[:2])


def _count(results: Iterable[BatchResult]) -> int:
    return sum(len(result.outcomes) for result in results)
