"""What the stream costs by itself: no model, no decoding, all the bookkeeping, and memory at a million tiles.

    python benchmarks/stream_overhead.py TILES --count 1000000 --json overhead.json

Memory: hard links to the tiles in TILES, spread evenly, `--count` of them against 1,000, both predicted by a fake
model in a process of their own; the difference of their peaks. Overhead: the same listing, with slots that are filled
already, to a table with fsynced shards.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from common import Rate, describe, interleave

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


def run(tiles: Path, out: Path, *, decoded: bool) -> dict[str, float]:
    """One run with a fake model in this process: tiles per second, seconds to list, and the process's peak memory."""
    from cervix_engine.backends.fake import FakeBackend
    from cervix_engine.bench.setup import BenchSetup
    from cervix_engine.bench.stages import stream_of
    from cervix_engine.bench.steps import PipelineSteps
    from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
    from cervix_engine.machine import usable_cpus
    from cervix_engine.run.record import Provenance
    from cervix_engine.run.session import Session
    from cervix_engine.run.tuning import DEFAULT_BATCH_SIZE
    from cervix_engine.tiles.discover import discover

    contract, backend = ModelContract(SIPAKMED_CLASSES), FakeBackend()
    began = time.perf_counter()
    spool = out.with_suffix(".listing")
    spool.mkdir(exist_ok=True)
    listing = discover(tiles, spool=spool)
    listed = time.perf_counter() - began
    provenance = Provenance("0" * 64, None, 0.0, 0.0)
    session = Session(contract, backend, DEFAULT_BATCH_SIZE, usable_cpus(), provenance, listing)
    # The listing stands for its tiles: a million of them are streamed, never held.
    setup = BenchSetup.of(session, listing, out=out)  # type: ignore[arg-type]
    steps = PipelineSteps.real(setup)
    if decoded:
        steps = steps.filled(setup)
    began = time.perf_counter()
    written = steps.write(stream_of(setup, steps))
    seconds = time.perf_counter() - began
    if written != listing.found:
        raise click.ClickException(f"{written} rows for {listing.found} tiles")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    return {"tiles_per_sec": written / seconds, "list_s": listed, "peak_mb": int(peak[1]) / 1024 if peak else 0.0}


def apart(tiles: Path, out: Path, *, decoded: bool) -> dict[str, float]:
    """`run` in a process of its own."""
    command = [sys.executable, __file__, str(tiles), "--inner", str(out), *(["--filled"] if decoded else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@click.command()
@click.argument("tiles", type=click.Path(path_type=Path, exists=True))
@click.option("--count", default=1_000_000, show_default=True, help="Listed tiles for memory.")
@click.option("--overhead-count", default=100_000, show_default=True, help="Listed tiles for the stream's own rate.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--decode/--no-decode", default=True, help="Whether the memory runs decode their tiles.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures there.")
@click.option("--inner", type=click.Path(path_type=Path), hidden=True)
@click.option("--filled", is_flag=True, hidden=True)
def main(
    tiles: Path,
    count: int,
    overhead_count: int,
    rounds: int,
    decode: bool,
    report: Path | None,
    inner: Path | None,
    filled: bool,
) -> None:
    """Measure the stream without a model."""
    if inner:
        print(json.dumps(run(tiles, inner, decoded=filled)))
        return
    # Beside the tiles: hard links do not reach other file systems.
    with tempfile.TemporaryDirectory(dir=tiles.parent) as name:
        folder = Path(name)
        few = apart(linked(tiles, folder / "few", count=FEW), folder / "few.csv", decoded=not decode)
        many = apart(linked(tiles, folder / "many", count=count), folder / "many.csv", decoded=not decode)
        sample = linked(tiles, folder / "sample", count=overhead_count)
        rates = interleave(
            {"overhead": lambda: apart(sample, folder / "sample.csv", decoded=True)["tiles_per_sec"]}, rounds=rounds
        )
    publish(count, few, many, overhead_count, rates["overhead"], report)


def publish(
    count: int, few: dict[str, float], many: dict[str, float], overhead_count: int, rate: Rate, report: Path | None
) -> None:
    """Print the figures, and write them."""
    growth = many["peak_mb"] - few["peak_mb"]
    figures: dict[str, Any] = {
        "benchmark": "stream_overhead",
        **describe(),
        "memory": {
            "few": FEW,
            "many": count,
            "few_mb": few["peak_mb"],
            "many_mb": many["peak_mb"],
            "growth_mb": growth,
        },
        "list_s": many["list_s"],
        "overhead": {"tiles": overhead_count, **rate.to_json()},
    }
    print(
        f"memory: {few['peak_mb']:.0f} MB for {FEW:,} tiles, {many['peak_mb']:.0f} MB for {count:,}: +{growth:.1f} MB"
    )
    print(f"listing {count:,} tiles: {many['list_s']:.1f} s")
    print(f"the stream's own overhead, {overhead_count:,} tiles, slots filled: {rate}")
    if report:
        report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
