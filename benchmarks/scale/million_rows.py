"""Report, summary and GeoJSON of a table of a million rows: seconds and peak memory of the real command.

    python -m benchmarks.scale.million_rows --rows 1000000 --json million_rows.json

The rows are made up, with no tiles behind them: 100 slides of tiles on a grid, one tile in 500 failed. What is timed is
`cervix-report` in a process of its own, from its start to its end.
"""

from __future__ import annotations

import csv
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from benchmarks.common import json_option, machine, publish
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.tile import Prediction, TileFailure, TileRef, TileSize

SLIDES = 100
SIDE = 224
FAILED_EVERY = 500


def rows(count: int) -> Iterator[list[str]]:
    """The table's rows, its columns first."""
    row_format = RowFormat(ModelContract(SIPAKMED_CLASSES))
    yield list(row_format.columns)
    random = np.random.default_rng(0)
    a_slide = -(-count // SLIDES)
    width = int(a_slide**0.5) or 1
    for index in range(count):
        slide, place = divmod(index, a_slide)
        name = f"slide_{slide:03d}"
        x, y = place % width * SIDE, place // width * SIDE
        tile = TileRef(index, f"{name}/{name}_x{x}_y{y}.jpg")
        if index % FAILED_EVERY == 0:
            yield row_format.row(tile, TileFailure("decode", "truncated: the file ends too early"))
            continue
        probabilities = random.dirichlet((1.0, 0.3, 0.2, 4.0, 4.0))
        yield row_format.row(tile, Prediction(TileSize(SIDE, SIDE), tuple(map(float, probabilities))))


@click.command()
@click.option("--rows", "count", default=1_000_000, show_default=True)
@json_option
def main(count: int, report: Path | None) -> None:
    """Time `cervix-report` over a large table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = folder / "preds.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows(count))
        page = folder / "report.html"
        command: list[Path | str] = [Path(sys.executable).with_name("cervix-report"), table, "--out", page]
        command += ["--summary", folder / "slides.csv", "--geojson", folder / "qupath"]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
        size = page.stat().st_size / 1e6
        print(f"{count:,} rows, {table.stat().st_size / 1e6:.0f} MB; {machine()}")
        print(f"  report of {size:.1f} MB, summary and GeoJSON: {seconds:.1f} s, at most {peak:.0f} MB")
    publish(report, {"benchmark": "million_rows", "rows": count, "seconds": seconds, "peak_mb": peak})


if __name__ == "__main__":
    main()
