"""What a small table is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract

CONTRACT = ModelContract(SIPAKMED_CLASSES)


@dataclass(frozen=True)
class Tile:
    """A row to be: its path, its slide, and either probabilities or the reason of its failure."""

    path: str
    slide: str = "s"
    probabilities: Sequence[float] = (0.1, 0.1, 0.6, 0.1, 0.1)
    reason: str | None = None


WriteTable = Callable[..., Path]
