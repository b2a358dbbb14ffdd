"""What the stream costs by itself: no model, no decoding, all the bookkeeping, and memory at a million tiles.

    python -m benchmarks.stream.stream_overhead TILES --count 1000000 --json overhead.json

Overhead: hard links to the tiles in TILES, spread evenly, through decode workers that only hand them back and a fake
model, to a finished table with fsynced shards; tiles a second, and the processor time of the run's own process for one.

Memory: `--count` of such links against 1,000, in runs of their own; the difference of the most that all processes of a
run held together. What they share is counted for each of them.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.common import describe, interleave

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


@dataclass(frozen=True)
class Passed:
    """What one run took.

    Attributes:
        tiles_per_sec: from the first tile to the finished table.
        own_us_per_tile: processor time of the run's own process, the fake model's included.
        list_s: seconds to list the tiles.
        held_mb: the most memory that all of its processes held.
    """

    tiles_per_sec: float
    own_us_per_tile: float
    list_s: float
    held_mb: float


def run(tiles: Path, out: Path, *, decoded: bool) -> Passed:
    """One run with a fake model in this process."""
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
    from cervix_engine.tiles.sources.folder import Folder

    contract, backend = ModelContract(SIPAKMED_CLASSES), FakeBackend()
    began = time.perf_counter()
    spool = out.with_suffix(".listing")
    spool.mkdir(exist_ok=True)
    listing = discover(Folder(tiles), spool=spool)
    listed = time.perf_counter() - began
    provenance = Provenance("0" * 64, None, 0.0, 0.0)
    session = Session(contract, backend, DEFAULT_BATCH_SIZE, usable_cpus(), provenance, listing)
    # The listing stands for its tiles: a million of them are streamed, never held.
    setup = BenchSetup.of(session, listing, out=out)  # type: ignore[arg-type]
    steps = PipelineSteps.real(setup)
    if decoded:
        steps = steps.filled(setup)
    began, own_began = time.perf_counter(), time.process_time()
    with held() as most:
        written = steps.write(stream_of(setup, steps))
    seconds, own_s = time.perf_counter() - began, time.process_time() - own_began
    if written != listing.found:
        raise click.ClickException(f"{written} rows for {listing.found} tiles")
    return Passed(written / seconds, 1e6 * own_s / written, listed, most[0])


@contextmanager
def held() -> Iterator[list[float]]:
    """Look again and again at how many MB this process and all that come of it hold; the most is the list's item."""
    most, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], sum(map(rss_mb, family(os.getpid()))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def family(process: int) -> list[int]:
    """A process, its children, and theirs, whichever of its threads started them."""
    found = [process]
    for member in found:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            with suppress(OSError):  # the thread has ended
                found += map(int, children.read_text(encoding="ascii").split())
    return found


def rss_mb(process: int) -> float:
    """What a process holds now; nothing where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    size = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(size[1]) / 1024 if size else 0.0


def apart(tiles: Path, out: Path, *, decoded: bool) -> Passed:
    """`run` in a process of its own."""
    options = ["--inner", str(out), *(["--filled"] if decoded else [])]
    command = [sys.executable, "-m", "benchmarks.stream.stream_overhead", str(tiles), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Passed(**json.loads(done.stdout))


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
        print(json.dumps(asdict(run(tiles, inner, decoded=filled))))
        return
    # Beside the tiles: hard links do not reach other file systems.
    with tempfile.TemporaryDirectory(dir=tiles.parent) as name:
        folder = Path(name)
        few = apart(linked(tiles, folder / "few", count=FEW), folder / "few.csv", decoded=not decode)
        many = apart(linked(tiles, folder / "many", count=count), folder / "many.csv", decoded=not decode)
        sample = linked(tiles, folder / "sample", count=overhead_count)
        own_us: list[float] = []

        def overhead() -> float:
            passed = apart(sample, folder / "sample.csv", decoded=True)
            own_us.append(passed.own_us_per_tile)
            return passed.tiles_per_sec

        rate = interleave({"overhead": overhead}, rounds=rounds)["overhead"]
    publish(count, few, many, {"tiles": overhead_count, **rate.to_json()}, statistics.median(own_us), report)


def publish(
    count: int, few: Passed, many: Passed, overhead: dict[str, float], own_us: float, report: Path | None
) -> None:
    """Print the figures, and write them."""
    growth = many.held_mb - few.held_mb
    figures: dict[str, Any] = {
        "benchmark": "stream_overhead",
        **describe(),
        "memory": {
            "few": FEW,
            "many": count,
            "few_mb": few.held_mb,
            "many_mb": many.held_mb,
            "growth_mb": growth,
        },
        "list_s": many.list_s,
        "overhead": {**overhead, "own_us_per_tile": own_us},
    }
    print(
        f"memory of all processes: {few.held_mb:.0f} MB for {FEW:,} tiles, {many.held_mb:.0f} MB for {count:,}: "
        f"{growth:+.1f} MB"
    )
    print(f"listing {count:,} tiles: {many.list_s:.1f} s")
    print(
        f"workers that only hand back, {overhead['tiles']:,} tiles to the finished table: {overhead['median']:,.0f} "
        f"tiles/s ({overhead['low']:,.0f} to {overhead['high']:,.0f}); the run's own process takes {own_us:.1f} µs each"
    )
    if report:
        report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
