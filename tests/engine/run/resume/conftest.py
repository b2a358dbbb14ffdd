"""A run over 50 tiles for each test, and the table of one that nothing disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.run.batch import BatchConfig, predict_folder
from engine.run.resume.stopped_run import BATCH, TILES, Run
from engine.run.support import read_table


@pytest.fixture
def run(tiles: Path, bundle: Bundle, tmp_path: Path) -> Run:
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "preds.csv"
    return Run(BatchConfig(tiles=tiles, out=out, model=bundle.root, batch_size=BATCH))


@pytest.fixture(scope="session")
def undisturbed(tiles: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("undisturbed") / "preds.csv"
    predict_folder(BatchConfig(tiles=tiles, out=out, model=bundle.root, batch_size=BATCH))
    assert len(read_table(out)) == TILES
    return out.read_bytes()
