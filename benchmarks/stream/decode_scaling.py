"""How decoding scales: tiles a second by 1 to 8 decode workers, and by as many threads, interleaved.

    python -m benchmarks.stream.decode_scaling TILES --side 224 --suffix .jpg --workers 1,2,4,8 --json decode.json

The tiles are made from those in TILES: resized to `--side` and encoded anew. Workers are those of a run, with a fake
model that costs next to nothing; threads do the same steps in this process, with no stream around them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import cv2
import numpy as np

from benchmarks.common import Rate, describe, interleave, sample_tiles
from benchmarks.races.contenders import encode_anew
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bench.measure import Gate, Meter, Work
from cervix_engine.bench.setup import BenchSetup
from cervix_engine.bench.stages import decoding
from cervix_engine.bench.steps import PipelineSteps
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.run.record import Provenance
from cervix_engine.run.session import Session
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.preprocess import preprocess_into, read_tile
from cervix_engine.tiles.sources.folder import Folder

CONTRACT = ModelContract(SIPAKMED_CLASSES)
BATCH_SIZE = 32
# One round of the meter is one of the race's.
ONCE = Meter(Gate(window=2, max_rounds=2, tolerance=0.99, round_s=0.5))


def in_processes(stack: ExitStack, listing: Listing, workers: int) -> Work:
    """Passes over all tiles by a run's decode workers, which stay until the stack is left."""
    session = Session(CONTRACT, FakeBackend(), BATCH_SIZE, workers, Provenance("0" * 64, None, 0.0, 0.0), listing)
    setup = BenchSetup.of(session, tuple(listing), out=listing.path)
    steps = PipelineSteps.real(setup)
    return stack.enter_context(decoding(setup, steps, steps.tile))


def in_threads(stack: ExitStack, listing: Listing, threads: int) -> Work:
    """The same by a pool of threads."""
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    paths = [Path(str(listing.source)) / tile.path for tile in listing]
    shares = [paths[start::threads] for start in range(threads)]

    def share(paths: list[Path]) -> int:
        out = np.empty((*CONTRACT.input_size, 3), np.uint8)
        for path in paths:
            preprocess_into(out, read_tile(path), contract=CONTRACT)
        return len(paths)

    return lambda: sum(pool.map(share, shares))


def once(make: Callable[[ExitStack, Listing, int], Work], listing: Listing, number: int) -> float:
    """One round; only one contender's workers are there at a time."""
    with ExitStack() as stack:
        return ONCE.rate(make(stack, listing, number)).tiles_per_sec


@click.command()
@click.argument("tiles", type=click.Path(path_type=Path, exists=True))
@click.option("--side", default=224, show_default=True, help="Height and width of the tiles in pixels.")
@click.option("--suffix", default=".jpg", show_default=True)
@click.option("--count", default=512, show_default=True)
@click.option("--workers", default="1,2,3,4,6,8", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures there.")
def main(tiles: Path, side: int, suffix: str, count: int, workers: str, rounds: int, report: Path | None) -> None:
    """Race decode workers against threads."""
    cv2.setNumThreads(1)  # as in a run's workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample_tiles(tiles, folder / "tiles", count=count)
        encode_anew(folder / "tiles", side=side, suffix=suffix)
        listing = discover(Folder(folder / "tiles"), spool=folder)

        runs: dict[str, Callable[[], float]] = {}
        for number in map(int, workers.split(",")):
            runs[f"{number} workers"] = partial(once, in_processes, listing, number)
            runs[f"{number} threads"] = partial(once, in_threads, listing, number)
        publish(interleave(runs, rounds=rounds), f"{side} px {suffix}", report)


def publish(rates: dict[str, Rate], what: str, report: Path | None) -> None:
    """Print the rates, and write them."""
    print(f"{what}, decode alone")
    for name, rate in rates.items():
        print(f"  {name:12} {rate}")
    if report:
        figures = {
            "benchmark": "decode_scaling",
            **describe(),
            "tiles": what,
            "rates": {name: rate.to_json() for name, rate in rates.items()},
        }
        report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
