"""Where the stream's own limits lie: a model of 1 to 8 GPUs and decode workers that take a set time, on any machine.

    python -m benchmarks.scale.simulated_scale --gpus 1,2,4,8 --tiles-per-sec 22000 --decode-us 770 --json scale.json

Nothing is read, decoded or computed: a batch takes as long as it would on a GPU of that rate, and each worker takes
that long for a tile, asleep. As many workers are started as feed the GPUs. What the run's own process and its workers
do besides is real: handing tiles out, answers, rows, shards and their fsync.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

import click

from benchmarks.common import describe
from benchmarks.scale.set_time import SetTimeStep, SimulatedGpus, nothing
from cervix_engine.bench.setup import BenchSetup
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.run.record import Provenance
from cervix_engine.run.session import Session
from cervix_engine.run.stream.stats import PARENT, StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import TileRef

CONTRACT = ModelContract(SIPAKMED_CLASSES)
# Some workers more than keep up exactly, as a run's choice has them.
HEADROOM = 1.1


@dataclass(frozen=True)
class Scale:
    """What came of so many GPUs."""

    gpus: int
    workers: int
    wanted_tiles_per_sec: float
    tiles_per_sec: float
    parent_us_per_tile: float


def run(folder: Path, *, gpus: int, rate: float, decode_s: float, batch_size: int, seconds: float) -> Scale:
    """A run of about so many seconds, to the durable table."""
    wanted = gpus * rate
    workers = max(1, math.ceil(HEADROOM * wanted * decode_s))
    backend = SimulatedGpus(gpus, batch_s=batch_size / rate, batch_size=batch_size)
    listing = discover(Folder(folder / "tiles"), spool=folder)
    session = Session(CONTRACT, backend, batch_size, workers, Provenance("0" * 64, None, 0.0, 0.0), listing)
    tiles = tuple(repeat(TileRef(0, "tile 0000000.jpg"), batch_size * math.ceil(wanted * seconds / batch_size)))
    setup, stats = BenchSetup.of(session, tiles, out=folder / "preds.csv"), StreamStats()
    steps = TileSteps(nothing, SetTimeStep(decode_s))
    began = time.perf_counter()
    with closing(session.predict(setup.batches(), source=listing.source, steps=steps, stats=stats)) as results:
        written = setup.write_table(results)
    took_s = time.perf_counter() - began
    (parent,) = [stage for stage in stats.stages() if stage.stage == PARENT]
    return Scale(gpus, workers, wanted, written / took_s, 1e6 * parent.busy_s / written)


@click.command()
@click.option("--gpus", default="1,2,4,8", show_default=True)
@click.option("--tiles-per-sec", default=22_000.0, show_default=True, help="Of one GPU.")
@click.option("--decode-us", default=770.0, show_default=True, help="Of one worker for one tile.")
@click.option("-b", "--batch-size", default=256, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="What a run would take if the stream had no limit.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures there.")
def main(
    gpus: str, tiles_per_sec: float, decode_us: float, batch_size: int, seconds: float, report: Path | None
) -> None:
    """Show where the stream's own limits lie."""
    scales = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tiles").mkdir()
        (folder / "tiles" / "tile 0000000.jpg").write_bytes(b"nobody reads it")
        for number in map(int, gpus.split(",")):
            scale = run(
                folder,
                gpus=number,
                rate=tiles_per_sec,
                decode_s=decode_us / 1e6,
                batch_size=batch_size,
                seconds=seconds,
            )
            print(
                f"{scale.gpus} GPUs, {scale.workers} workers: {scale.tiles_per_sec:,.0f} tiles/s of "
                f"{scale.wanted_tiles_per_sec:,.0f}; the run's own process takes {scale.parent_us_per_tile:.1f} µs "
                f"a tile, so at most {1e6 / scale.parent_us_per_tile:,.0f} tiles/s",
                flush=True,
            )
            scales.append(scale)
    if report:
        figures = {"benchmark": "simulated_scale", **describe(), "scales": [asdict(scale) for scale in scales]}
        report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
