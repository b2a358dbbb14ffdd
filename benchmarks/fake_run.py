"""One run to the finished table, in a process of its own, with a fake model: what it took, and the memory it held.

    python -m benchmarks.fake_run TILES preds.csv --filled

What costs time here is the run itself: listing, decoding (with `--filled`, not even that), the stream, the table.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import click

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
from cervix_engine.tiles.sources.open import open_source


@dataclass(frozen=True)
class FakeRun:
    """What one run took.

    Attributes:
        tiles: rows of its table.
        tiles_per_sec: from the first tile to the finished table.
        own_us_per_tile: processor time of the run's own process, the fake model's included.
        list_s: seconds to list the tiles.
        held_mb: the most memory that all of its processes held, listing included; what they share is counted for each.
    """

    tiles: int
    tiles_per_sec: float
    own_us_per_tile: float
    list_s: float
    held_mb: float


def fake_run(tiles: Path, out: Path, *, filled: bool = False) -> FakeRun:
    """Run over `tiles`, whatever source they are, in a process of its own.

    Args:
        tiles: the source.
        out: the table.
        filled: whether decode workers only hand tiles back.
    """
    command = [sys.executable, "-m", "benchmarks.fake_run", str(tiles), str(out), *(["--filled"] if filled else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return FakeRun(**json.loads(done.stdout))


def growth_words(few: FakeRun, many: FakeRun) -> str:
    """How much more memory a run over many tiles held than one over few."""
    held = f"{few.held_mb:.0f} MB for {few.tiles:,} tiles, {many.held_mb:.0f} MB for {many.tiles:,}"
    return f"memory of all processes: {held}: {many.held_mb - few.held_mb:+.1f} MB"


def _run(tiles: str, out: Path, *, filled: bool) -> FakeRun:
    began, spool = time.perf_counter(), out.with_suffix(".listing")
    spool.mkdir(exist_ok=True)
    with held() as most:
        listing = discover(open_source(tiles), spool=spool)
        listed = time.perf_counter() - began
        provenance = Provenance("0" * 64, None, 0.0, 0.0)
        contract = ModelContract(SIPAKMED_CLASSES)
        session = Session(contract, FakeBackend(), DEFAULT_BATCH_SIZE, usable_cpus(), provenance, listing)
        # The listing stands for its tiles: a million of them are streamed, never held.
        setup = BenchSetup.of(session, listing, out=out)  # type: ignore[arg-type]
        steps = PipelineSteps.real(setup)
        if filled:
            steps = steps.filled(setup)
        began, own_began = time.perf_counter(), time.process_time()
        written = steps.write(stream_of(setup, steps))
        seconds, own_s = time.perf_counter() - began, time.process_time() - own_began
    if written != listing.found:
        raise click.ClickException(f"{written} rows for {listing.found} tiles")
    return FakeRun(written, written / seconds, 1e6 * own_s / written, listed, most[0])


@contextmanager
def held() -> Iterator[list[float]]:
    """Look again and again at how many MB this process and all that come of it hold; the most is the list's item."""
    most, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], sum(map(_rss_mb, _family(os.getpid()))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def _family(process: int) -> list[int]:
    """A process, its children, and theirs, whichever of its threads started them."""
    found = [process]
    for member in found:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            with suppress(OSError):  # the thread has ended
                found += map(int, children.read_text(encoding="ascii").split())
    return found


def _rss_mb(process: int) -> float:
    """What a process holds now; nothing where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    size = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(size[1]) / 1024 if size else 0.0


@click.command()
@click.argument("tiles")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--filled", is_flag=True, help="Let decode workers only hand tiles back.")
def main(tiles: str, out: Path, filled: bool) -> None:
    """Run once over TILES, and print what that took as JSON."""
    print(json.dumps(asdict(_run(tiles, out, filled=filled))))


if __name__ == "__main__":
    main()
