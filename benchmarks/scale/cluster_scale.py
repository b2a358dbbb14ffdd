"""What a run on many machines costs the one that drives it: listing, blocks, journal, table; and what breaks first.

    python -m benchmarks.scale.cluster_scale --nodes 64 --tiles-per-sec 22000 --total 1000000000 --json cluster.json

Workers are fakes that take a set time for a block and write nothing. Everything that the driver does is real, over as
many tiles as `--tiles` says; the table scales each cost up to `--total`. Costs of tiles are processor time, those of
blocks the time that the driver is not waiting for workers, which fsync is most of.
"""

from __future__ import annotations

import heapq
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.common import describe
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.cluster.blocks import Block, BlockCutter
from cervix_engine.cluster.driver import Finished, cutter_for, journal_results
from cervix_engine.cluster.worker import Done
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.files import sha256_file
from cervix_engine.run.assembly.chunks import Chunk, Piece, write_chunk
from cervix_engine.run.assembly.run_folder import JOURNAL
from cervix_engine.run.assembly.table_files import TableContent, write_table
from cervix_engine.run.batch import Books, no_progress
from cervix_engine.run.budget import DEFAULT_BUDGET
from cervix_engine.run.journal import Journal, RunIdentity, Shard
from cervix_engine.run.record import Provenance
from cervix_engine.run.transaction import TableTransaction
from cervix_engine.table.coordinates import FOLDER, NAMES
from cervix_engine.table.formats import csv_line
from cervix_engine.table.locations import check_slides, slides_for_run
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing, stamp_check, write_records
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import Prediction, TileRef, TileSize

CONTRACT = ModelContract(SIPAKMED_CLASSES)
BATCH, FOLDERS, A_FOLDER = 256, 20, 1000
IN_FLIGHT = 3


@dataclass(frozen=True)
class Cost:
    """A step of the driver: seconds for each of `unit`, of which a run of the whole size has `count`."""

    step: str
    unit: str
    seconds: float
    count: float
    says: str

    @property
    def total_s(self) -> float:
        return self.seconds * self.count


class SetTimePool:
    """So many workers, each of which takes a set time for a tile; their blocks come back one after another."""

    def __init__(self, folder: Path, *, workers: int, tiles_per_sec: float, block_tiles: int) -> None:
        self._folder = folder
        self._workers = workers
        self._rate = tiles_per_sec
        self._block_tiles = block_tiles
        self.waited_s = 0.0

    def results(self, cutter: BlockCutter) -> Iterator[Finished]:
        free = [time.perf_counter()] * self._workers
        under_way: list[tuple[float, int, Block]] = []
        for worker in list(range(self._workers)) * IN_FLIGHT:
            self._give(cutter, worker, free, under_way)
        while under_way:
            at, worker, block = heapq.heappop(under_way)
            began = time.perf_counter()
            time.sleep(max(0.0, at - began))
            name = f"block-{block.first_batch}"
            (self._folder / name).touch()
            shard = Shard(block.first_batch, block.batches, block.tiles, {}, "0" * 64)
            self.waited_s += time.perf_counter() - began
            yield Finished(Done(block, shard, name, 0.0), f"node {worker}", worker)
            self._give(cutter, worker, free, under_way)

    def _give(
        self, cutter: BlockCutter, worker: int, free: list[float], under_way: list[tuple[float, int, Block]]
    ) -> None:
        block = cutter.cut(self._block_tiles)
        if block:
            free[worker] = max(free[worker], time.perf_counter()) + block.tiles / self._rate
            heapq.heappush(under_way, (free[worker], worker, block))


def listed(folder: Path) -> float:
    """Seconds a tile of listing a real folder."""
    root = folder / "tiles"
    for number in range(FOLDERS):
        (root / f"slide_{number:03d}").mkdir(parents=True)
        for index in range(A_FOLDER):
            (root / f"slide_{number:03d}" / f"slide_{number:03d}_x{index * 224}_y0.jpg").touch()
    (folder / "spool").mkdir()
    began = time.process_time()
    found = discover(Folder(root), spool=folder / "spool").found
    return (time.process_time() - began) / found


def made_up(folder: Path, tiles: int) -> Listing:
    """A listing with no tiles behind it, of names as slides' tiles have them."""
    names = (b"slide_%05d/slide_%05d_x%d_y%d.jpg" % (i // 20_000, i // 20_000, i % 200 * 224, i) for i in range(tiles))
    records = ((name, 20_000, 1_700_000_000_000_000_000 + at, b"") for at, name in enumerate(names))
    return Listing(Folder(folder), folder / "listing", write_records(folder / "listing", records), 0)


def identity() -> RunIdentity:
    info = FakeBackend().info
    return RunIdentity(
        root="/",
        bundle_digest="0" * 64,
        artefact_sha256=info.artefact_sha256,
        backend=info.backend,
        backend_version=info.version,
        device_class=info.device_class,
        precision=info.precision,
        threads=info.threads,
        batch_size=BATCH,
        columns=RowFormat(CONTRACT).columns,
        listing_sha256="0" * 64,
    )


def driven(out: Path, listing: Listing, *, workers: int, rate: float, block_tiles: int) -> tuple[float, float, int]:
    """(tiles/s that came through, seconds a block of the driver's own, blocks) with workers of a set time."""
    provenance = Provenance("0" * 64, None, 0.0, 0.0)
    with TableTransaction(out) as table:
        folder = table.empty_folder()
        os.link(listing.path, folder / "listing")
        pool = SetTimePool(folder, workers=workers, tiles_per_sec=rate, block_tiles=block_tiles)
        with table.begin(identity(), listing, backend=FakeBackend().info, provenance=provenance) as begun:
            books = Books(0, 0, begun.found, DEFAULT_BUDGET, no_progress)
            began = time.perf_counter()
            with cutter_for(table, listing) as cutter:
                nodes = journal_results(table, pool.results(cutter), books=books)
            took_s = time.perf_counter() - began
            table.require_balance()
            blocks = sum(node.blocks for node in nodes)
    return listing.found / took_s, (took_s - pool.waited_s) / blocks, blocks


def journalled(folder: Path) -> float:
    """Seconds an entry of reading the journal of a run that goes on."""
    count = 50_000
    listing = Listing(Folder(folder), folder / "listing", count * BATCH, 0)
    journal = Journal.create(folder / JOURNAL, identity=identity(), listing=listing)
    journal.append(Shard(0, 1, BATCH, {}, "0" * 64))
    line = journal.path.read_bytes().splitlines(keepends=True)[-1]
    with journal.path.open("ab") as file:
        file.writelines([line] * count)
    began = time.process_time()
    Journal.load(journal.path)
    return (time.process_time() - began) / count


def assembled(folder: Path, listing: Listing, count: int) -> tuple[float, float, float, float]:
    """What a row costs: seconds of one table with its checks; of a folder's files, to a worker, and then to the driver;
    and its bytes as CSV."""
    columns = RowFormat(CONTRACT).columns
    tile = next(iter(listing))
    answer = Prediction(TileSize(224, 224), (0.9, 0.04, 0.03, 0.02, 0.01))
    row = csv_line(RowFormat(CONTRACT).row(TileRef(0, tile.path), answer))
    (folder / "rows.csv").write_bytes(row * count)
    began = time.process_time()
    with (folder / "rows.csv").open("rb") as rows:
        stamps = (stamp_check(record) for record, _ in zip(listing.records(), range(count), strict=False))
        write_table(folder, folder / "table.csv", TableContent(identity(), rows, stamps))
    table_s = time.process_time() - began
    began = time.process_time()
    whole = (Chunk(number, (Piece("rows.csv", 0, count),), offset=0) for number in range(2))
    chunks = [
        write_chunk(folder, item.number, columns, item.lines(folder), item.stamps(listing.path)) for item in whole
    ]
    worker_s = (time.process_time() - began) / len(chunks)
    began = time.process_time()
    write_table(folder, folder / "table", TableContent(identity(), (), None, chunks))
    driver_s = (time.process_time() - began) / len(chunks)
    return table_s / count, worker_s / count, driver_s / count, len(row)


def passes(listing: Listing) -> tuple[float, float]:
    """Seconds a tile of the digest of the listing, and of looking at all names, before the first block."""
    began = time.process_time()
    sha256_file(listing.path)
    digest_s = time.process_time() - began
    began = time.process_time()
    check_slides(slides_for_run(FOLDER, "root"), listing.paths())
    RowFormat.for_run(CONTRACT, optional=(), slide=FOLDER, coords=NAMES, root_name="root", paths=listing.paths())
    return digest_s / listing.found, (time.process_time() - began) / listing.found


def costs(folder: Path, *, tiles: int, workers: int, rate: float, total: float) -> list[Cost]:
    """What each step costs, in the order of a run."""
    listing_s = listed(folder)
    listing = made_up(folder, tiles)
    size = listing.path.stat().st_size / tiles
    digest_s, names_s = passes(listing)
    small_rate, small_s, _ = driven(folder / "small.csv", listing, workers=workers, rate=rate, block_tiles=4096)
    block = min(262_144.0, 10 * rate)
    row_s, worker_s, driver_s, row_bytes = assembled(folder, listing, min(tiles, 262_144))
    blocks = total / block
    kept = f"blocks of 4,096: {small_rate:,.0f} tiles/s of {workers * rate:,.0f} come through"
    return [
        Cost("list the folder", "tile", listing_s, total, "one process: scandir, stat, sort on disk; local disk"),
        Cost("digest of the listing", "tile", digest_s, total, f"{size:.0f} bytes a tile"),
        Cost("names: slides, locations", "tile", names_s, total, "one pass each, before the first block"),
        Cost("driver: cut, name, journal", "block", small_s, blocks, f"blocks of {block:,.0f} tiles; {kept}"),
        Cost("journal read on resume", "block", journalled(folder), blocks, "one JSON line a block"),
        Cost(
            "assembly as CSV", "tile", row_s, total, f"{row_bytes:.0f} bytes a row, {total * row_bytes / 1e9:,.0f} GB"
        ),
        Cost("folder: files, by workers", "tile", worker_s / workers, total, f"{1e6 * worker_s:.1f} µs a row of each"),
        Cost("folder: checks, manifest", "tile", driver_s, total, "in place of the assembly"),
    ]


@click.command()
@click.option("--nodes", default=64, show_default=True, help="Workers.")
@click.option("--tiles-per-sec", default=22_000.0, show_default=True, help="Of one worker.")
@click.option("--total", default=1e9, show_default=True, help="Tiles of the run that costs are scaled up to.")
@click.option("--tiles", default=2_000_000, show_default=True, help="Tiles that are measured.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures there.")
def main(nodes: int, tiles_per_sec: float, total: float, tiles: int, report: Path | None) -> None:
    """Show what a run on many machines costs its driver."""
    with tempfile.TemporaryDirectory() as name, suppress(KeyboardInterrupt):
        found = costs(Path(name), tiles=tiles, workers=nodes, rate=tiles_per_sec, total=total)
        compute_s = total / (nodes * tiles_per_sec)
        print(f"{total:,.0f} tiles, {nodes} workers of {tiles_per_sec:,.0f} tiles/s: {compute_s / 60:,.1f} min of work")
        for cost in found:
            print(
                f"{cost.step:<28} {1e6 * cost.seconds:10,.2f} µs a {cost.unit:<6} {cost.total_s / 60:8,.1f} min "
                f"{cost.total_s / compute_s:7.1%} of the work  ({cost.says})"
            )
        if report:
            figures = {"benchmark": "cluster_scale", **describe(), "work_s": compute_s}
            figures["costs"] = [{**asdict(cost), "total_s": cost.total_s} for cost in found]
            report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
