"""Whole slides: tiles a second by a run's decode workers, and by as many processes that only call OpenSlide.

    python -m benchmarks.sources.whole_slides --workers 2 --json slides.json          # slides are drawn
    python -m benchmarks.sources.whole_slides slides/ --tile-px 224 --mpp 0.5

Drawn are an Aperio-like SVS of 0.25 µm a pixel and a generic tiled TIFF of 0.5, `--side` pixels wide and high. Workers
are those of a run, with a fake model that costs next to nothing: they read, compose, resize, and fill slots. The others
read the same regions of the same levels, each an equal part of every slide that lies together, and throw them away.
Starts do not count.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path

import click
import cv2

from benchmarks.common import describe, interleave
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bench.setup import BenchSetup
from cervix_engine.bench.stages import decoding
from cervix_engine.bench.steps import PipelineSteps
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.run.record import Provenance
from cervix_engine.run.session import Session
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.slides.grid import GridRules, Region, nearest_level
from cervix_engine.tiles.sources.slides import WholeSlides

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

CONTRACT = ModelContract(SIPAKMED_CLASSES)
BATCH_SIZE = 32

# A slide's file, and x, y, level, width and height on that level, as OpenSlide takes them.
Read = tuple[str, int, int, int, int, int]


def draw(folder: Path, side: int) -> None:
    """Write two slides, each with several levels."""
    from engine.tiles.slides.drawn_slides import draw_slide, write_aperio, write_generic

    canvas = draw_slide(side, side)
    write_aperio(folder / "aperio.svs", canvas)
    write_generic(folder / "generic.tiff", canvas)


def reads_of(listing: Listing, root: Path, rules: GridRules) -> list[Read]:
    """What OpenSlide has to be asked for these tiles."""
    import openslide

    downsamples: dict[str, Sequence[float]] = {}
    reads = []
    for tile in listing:
        slide, _, name = f"{root}/{tile.path}".rpartition("/")
        region = Region.from_name(name)
        if region is None:
            continue
        if slide not in downsamples:
            with openslide.OpenSlide(slide) as opened:
                downsamples[slide] = opened.level_downsamples
        level = nearest_level(downsamples[slide], region.width / rules.tile_px)
        width, height = (round(length / downsamples[slide][level]) for length in (region.width, region.height))
        reads.append((slide, region.x, region.y, level, width, height))
    return reads


def read_alone(told: Connection, reads: list[Read]) -> None:
    """A process: at each word, read all of its regions, and say so."""
    import openslide

    slides = {slide: openslide.OpenSlide(slide) for slide in {slide for slide, *_ in reads}}
    while told.recv():
        for slide, x, y, level, width, height in reads:
            slides[slide].read_region((x, y), level, (width, height))
        told.send(len(reads))


def parts_of(reads: list[Read], count: int) -> list[list[Read]]:
    """As many parts, each with an equal share of every slide that lies together."""
    parts: list[list[Read]] = [[] for _ in range(count)]
    for _, group in groupby(reads, key=itemgetter(0)):
        of_slide = list(group)
        for number, part in enumerate(parts):
            part += of_slide[len(of_slide) * number // count : len(of_slide) * (number + 1) // count]
    return parts


class OpenSlideAlone:
    """As many processes as there are workers, each with its part of the reads."""

    def __init__(self, reads: list[Read], processes: int, stack: ExitStack) -> None:
        context = multiprocessing.get_context("spawn")
        self._told: list[Connection] = []
        for part in parts_of(reads, processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=read_alone, args=(theirs, part), daemon=True)
            process.start()
            stack.callback(process.terminate)
            self._told.append(ours)

    def rate(self) -> float:
        """Tiles per second of one pass."""
        began = time.perf_counter()
        for told in self._told:
            told.send(True)
        done: int = sum(told.recv() for told in self._told)
        return done / (time.perf_counter() - began)


def by_workers(listing: Listing, workers: int) -> float:
    """Tiles per second of one pass over the same tiles by a run's decode workers, after one that warms them up."""
    session = Session(CONTRACT, FakeBackend(), BATCH_SIZE, workers, Provenance("0" * 64, None, 0.0, 0.0), listing)
    setup = BenchSetup.of(session, tuple(listing), out=listing.path)
    steps = PipelineSteps.real(setup)
    # Left after each pass: workers would go on, and have the next one ready before it begins.
    with decoding(setup, steps, steps.tile) as work:
        work()
        began = time.perf_counter()
        return work() / (time.perf_counter() - began)


@click.command()
@click.argument("slides", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option("--side", default=20_000, show_default=True, help="Width and height of drawn slides in pixels.")
@click.option("--tile-px", default=224, show_default=True)
@click.option("--mpp", default=0.5, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Decode workers, and processes of OpenSlide alone.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures there.")
def main(
    slides: Path | None, side: int, tile_px: int, mpp: float, workers: int, rounds: int, report: Path | None
) -> None:
    """Race a run's workers against OpenSlide alone."""
    cv2.setNumThreads(1)  # as in a run's workers
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = slides or Path(name) / "slides"
        if slides is None:
            folder.mkdir()
            draw(folder, side)
        rules = GridRules(tile_px=tile_px, mpp=mpp)
        began = time.perf_counter()
        listing = discover(WholeSlides(folder, rules), spool=Path(name))
        print(f"{listing.found} tiles, cut in {time.perf_counter() - began:.1f} s")
        alone = OpenSlideAlone(reads_of(listing, folder, rules), workers, stack)
        runs: dict[str, Callable[[], float]] = {
            "openslide": alone.rate,
            "workers": partial(by_workers, listing, workers),
        }
        rates = interleave(runs, rounds=rounds)
    ratio = rates["workers"].median / rates["openslide"].median
    for contender, rate in rates.items():
        print(f"  {contender:10} {rate}")
    print(f"  workers / openslide: {ratio:.2f}")
    if report:
        figures = {
            "benchmark": "whole_slides",
            **describe(),
            "tiles": listing.found,
            "rates": {contender: rate.to_json() for contender, rate in rates.items()},
            "ratio": ratio,
        }
        report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
