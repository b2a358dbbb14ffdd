"""A table depends on the tiles alone: not on decode workers, nor on the order in which a folder lists its files.

Another batch size is another shape for the runtime, which may sum in another order: there only the last digits differ.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.run.batch import BatchConfig, predict_folder
from engine.run.support import read_table

pytestmark = pytest.mark.timeout(300)

# In the table's own unit: one in its last digit, where two sums lie on either side of a rounding.
ACROSS_BATCH_SIZES = 1.01e-6


@pytest.fixture(scope="module")
def expected(tiles: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of one decode worker and batches of eight."""
    out = tmp_path_factory.mktemp("expected") / "preds.csv"
    predict_folder(BatchConfig(tiles=tiles, out=out, model=bundle.root, batch_size=8, workers=1))
    return out


@pytest.fixture
def config(tiles: Path, bundle: Bundle, tmp_path: Path) -> BatchConfig:
    return BatchConfig(tiles=tiles, out=tmp_path / "preds.csv", model=bundle.root, batch_size=8, workers=1)


class ShuffledScan:
    """`os.scandir` with its entries in another order."""

    def __init__(self, entries: Iterator[os.DirEntry[bytes]], seed: int) -> None:
        self._entries = list(entries)
        random.Random(seed).shuffle(self._entries)

    def __enter__(self) -> Iterator[os.DirEntry[bytes]]:
        return iter(self._entries)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@pytest.mark.parametrize("workers", [1, 2, 4, 16, 32])
def test_for_any_workers_and_any_order_of_the_folder(
    config: BatchConfig, expected: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def shuffled(folder: bytes) -> ShuffledScan:
        return ShuffledScan(scandir(folder), seed=workers)

    monkeypatch.setattr("cervix_engine.tiles.sources.folder.os.scandir", shuffled)
    predict_folder(replace(config, workers=workers))
    assert config.out.read_bytes() == expected.read_bytes()


def test_for_a_folder_that_was_filled_in_another_order(config: BatchConfig, expected: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / Path(config.tiles).name
    names = [path.relative_to(config.tiles) for path in Path(config.tiles).rglob("*") if path.is_file()]
    random.Random(3).shuffle(names)
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(config.tiles) / name, copy / name)
    predict_folder(replace(config, tiles=copy))
    assert config.out.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("batch_size", [1, 3, 16, 32, 64])
def test_across_batch_sizes(config: BatchConfig, expected: Path, batch_size: int) -> None:
    predict_folder(replace(config, batch_size=batch_size))
    rows, others = read_table(config.out), read_table(expected)
    assert len(rows) == 50
    for row, other in zip(rows, others, strict=True):
        for column, cell in row.items():
            if column == "confidence" or column.startswith("prob_"):
                assert abs(float(cell) - float(other[column])) <= ACROSS_BATCH_SIZES, column
            else:
                assert cell == other[column], column
