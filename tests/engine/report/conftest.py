"""Small tables, written by the engine's own row format, so that a reader is tested on what is really written."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.tile import Prediction, TileFailure, TileRef, TileSize
from engine.report.tables import CONTRACT, Tile, WriteTable


@pytest.fixture
def write_table(tmp_path: Path) -> WriteTable:
    def write(tiles: Sequence[Tile], name: str = "preds.csv") -> Path:
        row_format = RowFormat(CONTRACT, slides={tile.path: tile.slide for tile in tiles}.__getitem__)
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(row_format.columns)
            for index, tile in enumerate(tiles):
                outcome = (
                    TileFailure("decode", tile.reason)
                    if tile.reason
                    else Prediction(TileSize(100, 120), tuple(tile.probabilities))
                )
                writer.writerow(row_format.row(TileRef(index, tile.path), outcome))
        return tmp_path / name

    return write
