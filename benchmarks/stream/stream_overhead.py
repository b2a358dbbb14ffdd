"""What the stream costs by itself: no model, no decoding, all the bookkeeping, and memory at a million tiles.

    python -m benchmarks.stream.stream_overhead TILES --count 1000000 --json overhead.json

Overhead: hard links to the tiles in TILES, spread evenly, through decode workers that only hand them back and a fake
model, to a finished table with fsynced shards; tiles a second, and the processor time of the run's own process for one.

Memory: `--count` of such links against 1,000, in runs of their own; the difference of the most that all processes of a
run held together. What they share is counted for each of them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.common import describe, interleave
from benchmarks.fake_run import FakeRun, fake_run, growth_words

FEW = 1000
# ext4 allows 65,000 links to one file.
LINKS_A_FILE = 60_000


def linked(source: Path, target: Path, *, count: int) -> Path:
    """`count` hard links below `target`, spread evenly over all tiles of `source`, 1,000 a folder."""
    tiles = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".bmp"))
    if len(tiles) * LINKS_A_FILE < count:
        raise click.ClickException(f"{len(tiles)} tiles are too few for {count} links")
    for index in range(count):
        folder = target / f"slide {index // 1000:04d}"
        if index % 1000 == 0:
            folder.mkdir(parents=True)
        tile = tiles[index % len(tiles)]
        (folder / f"tile {index:07d}{tile.suffix}").hardlink_to(tile)
    return target


@click.command()
@click.argument("tiles", type=click.Path(path_type=Path, exists=True))
@click.option("--count", default=1_000_000, show_default=True, help="Listed tiles for memory.")
@click.option("--overhead-count", default=100_000, show_default=True, help="Listed tiles for the stream's own rate.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--decode/--no-decode", default=True, help="Whether the memory runs decode their tiles.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures there.")
def main(
    tiles: Path,
    count: int,
    overhead_count: int,
    rounds: int,
    decode: bool,
    report: Path | None,
) -> None:
    """Measure the stream without a model."""
    # Beside the tiles: hard links do not reach other file systems.
    with tempfile.TemporaryDirectory(dir=tiles.parent) as name:
        folder = Path(name)
        few = fake_run(linked(tiles, folder / "few", count=FEW), folder / "few.csv", filled=not decode)
        many = fake_run(linked(tiles, folder / "many", count=count), folder / "many.csv", filled=not decode)
        sample = linked(tiles, folder / "sample", count=overhead_count)
        own_us: list[float] = []

        def overhead() -> float:
            passed = fake_run(sample, folder / "sample.csv", filled=True)
            own_us.append(passed.own_us_per_tile)
            return passed.tiles_per_sec

        rate = interleave({"overhead": overhead}, rounds=rounds)["overhead"]
    publish(count, few, many, {"tiles": overhead_count, **rate.to_json()}, statistics.median(own_us), report)


def publish(
    count: int, few: FakeRun, many: FakeRun, overhead: dict[str, float], own_us: float, report: Path | None
) -> None:
    """Print the figures, and write them."""
    figures: dict[str, Any] = {
        "benchmark": "stream_overhead",
        **describe(),
        "memory": {
            "few": FEW,
            "many": count,
            "few_mb": few.held_mb,
            "many_mb": many.held_mb,
            "growth_mb": many.held_mb - few.held_mb,
        },
        "list_s": many.list_s,
        "overhead": {**overhead, "own_us_per_tile": own_us},
    }
    print(growth_words(few, many))
    print(f"listing {count:,} tiles: {many.list_s:.1f} s")
    print(
        f"workers that only hand back, {overhead['tiles']:,} tiles to the finished table: {overhead['median']:,.0f} "
        f"tiles/s ({overhead['low']:,.0f} to {overhead['high']:,.0f}); the run's own process takes {own_us:.1f} µs each"
    )
    if report:
        report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
