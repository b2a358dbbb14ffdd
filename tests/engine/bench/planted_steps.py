"""Steps from a file to pixels that are slow, or leave a trace, for decode workers: they import them by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cervix_engine.contract import ModelContract
from cervix_engine.tiles.preprocess import preprocess_into
from cervix_engine.tiles.sources.source import TileReader
from cervix_engine.tiles.tile import TileSize, TileStamp
from cervix_engine.values import Pixels

SLOW_S = 0.004


def slow_read(reader: TileReader, path: str, stamp: TileStamp | None, /) -> bytes | Pixels:
    time.sleep(SLOW_S)
    return reader.read(path, stamp)


def slow_decode(out: Pixels, data: bytes | Pixels, /, *, contract: ModelContract, look: object = None) -> TileSize:
    time.sleep(SLOW_S)
    return preprocess_into(out, data, contract=contract)


@dataclass(frozen=True)
class Traced:
    """A step that leaves a file where it is taken, whatever process takes it."""

    step: Callable[..., Any]
    trace: Path

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.trace.touch()
        return self.step(*arguments, **options)
