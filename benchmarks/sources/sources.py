"""The same tiles as folder, list, tar, zip, WebDataset's shards and `s3://` on loopback, by turns; a million members.

    python -m benchmarks.sources.sources TILES --count 1024 --rounds 5 --members 1000000 --json sources.json

Each round reads, decodes and hands over all tiles by a run's decode workers, with a fake model that costs next to
nothing: what a source costs shows here more than in any run with a real model. Answers must be those of the folder.
The store is moto's, in a process of its own, which shares this machine's cores: its ratio says little of a real one.

Then an archive of `--members` small tiles is listed, and run to the finished table with a fake model; the most memory
that all processes of that run held is compared with that of a run over 1,000.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import click
import cv2

from benchmarks.common import describe, interleave, json_option, publish, sample_tiles
from benchmarks.fake_run import FakeRun, fake_run, growth_words
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.machine import usable_cpus
from cervix_engine.run.record import Provenance
from cervix_engine.run.session import Session
from cervix_engine.run.stream.stream import batches_of
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.preprocess import decode
from cervix_engine.tiles.sources.open import open_source

CONTRACT = ModelContract(SIPAKMED_CLASSES)
BATCH_SIZE = 32
SHARDS = 4

# For the run over many members: what is compared with it, and tiles of which a million take little space.
FEW = 1000
SMALL_TILES, SMALL_PX = 8, 32

# Lists a source in a process of its own, and says its peak memory in MB before and after, and the seconds it took.
LISTING = """
import json, resource, sys, tempfile, time
from pathlib import Path
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.sources.open import open_source
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as spool:
    before, began = peak(), time.perf_counter()
    found = discover(open_source(sys.argv[1]), spool=Path(spool)).found
    print(json.dumps({"found": found, "seconds": time.perf_counter() - began, "before": before, "after": peak()}))
"""


@dataclass(frozen=True)
class ListedMembers:
    """What listing many members took: seconds, and peak memory in MB before and after."""

    found: int
    seconds: float
    before: float
    after: float


def members_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield path.relative_to(folder).as_posix(), path.read_bytes()


def write_tar(path: Path, members: Iterator[tuple[str, bytes]], *, beside: bool = False) -> None:
    """A tar of members; as WebDataset has it, with a file for the class beside each."""
    with path.open("wb") as archive:
        for name, data in members:
            for member, content in [(name, data), *([(f"{name.rpartition('.')[0]}.cls", b"0")] if beside else [])]:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                # Not by `tarfile`, which would hold all of a million.
                archive.write(info.tobuf() + content + bytes(-len(content) % tarfile.BLOCKSIZE))
        archive.write(bytes(2 * tarfile.BLOCKSIZE))


def write_zip(path: Path, members: Iterator[tuple[str, bytes]], *, method: int) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)


def pack(folder: Path, place: Path) -> dict[str, str]:
    """The tiles of a folder in every form that lies on disk; where each is."""
    members = list(members_of(folder))
    (place / "tiles.csv").write_text(
        "".join(f'"{line}"\n' for line in ["path", *(str(folder / n) for n, _ in members)])
    )
    write_tar(place / "tiles.tar", iter(members))
    write_zip(place / "tiles.zip", iter(members), method=zipfile.ZIP_STORED)
    write_zip(place / "deflated.zip", iter(members), method=zipfile.ZIP_DEFLATED)
    (place / "shards").mkdir()
    for number in range(SHARDS):
        write_tar(place / "shards" / f"tiles-{number:06d}.tar", iter(members[number::SHARDS]), beside=True)
    on_disk = {
        "list": "tiles.csv",
        "tar": "tiles.tar",
        "zip": "tiles.zip",
        "zip, deflated": "deflated.zip",
        "WebDataset": "shards",
    }
    return {"folder": str(folder), **{name: str(place / file) for name, file in on_disk.items()}}


@contextmanager
def object_store(folder: Path) -> Iterator[str]:
    """A store of S3's kind on loopback that holds the folder's tiles; the address of them."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    os.environ.update(
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
    )
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port)
            import boto3

            client = boto3.client("s3")
            client.create_bucket(Bucket="slides")
            for name, data in members_of(folder):
                client.put_object(Bucket="slides", Key=f"tiles/{name}", Body=data)
            yield "s3://slides/tiles"
        finally:
            server.terminate()


def _wait_for(port: int) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the store did not start")


def one_pass(listing: Listing, workers: int, answers: dict[str, object]) -> float:
    """Tiles per second of all tiles; their outcomes go to `answers`, by path without the shard's name."""
    session = Session(CONTRACT, FakeBackend(), BATCH_SIZE, workers, Provenance("0" * 64, None, 0.0, 0.0), listing)
    began = time.perf_counter()
    with closing(session.predict(batches_of(listing, BATCH_SIZE), source=listing.source)) as results:
        for result in results:
            for tile, outcome in zip(result.batch.tiles, result.outcomes, strict=True):
                answers[tile.path] = outcome
    return listing.found / (time.perf_counter() - began)


def race(sources: dict[str, str], folder: Path, *, rounds: int, workers: int) -> dict[str, float]:
    """The rate of each source divided by the folder's; refuses answers that are not those of the folder."""
    answers: dict[str, dict[str, object]] = {name: {} for name in sources}
    runs: dict[str, Callable[[], float]] = {}
    for name, tiles in sources.items():
        spool = folder / f"spool {name}"
        spool.mkdir()
        listing = discover(open_source(tiles), spool=spool)
        runs[name] = lambda name=name, listing=listing: one_pass(listing, workers, answers[name])  # type: ignore[misc]
    rates = interleave(runs, rounds=rounds)
    for name, rate in rates.items():
        same = sorted(map(str, answers[name].values())) == sorted(map(str, answers["folder"].values()))
        print(f"  {name:14} {rate}  {rate.median / rates['folder'].median:.3f} of the folder, same answers: {same}")
        if not same:
            raise SystemExit(f"{name} gives other answers than the folder")
    return {name: rate.median / rates["folder"].median for name, rate in rates.items()}


def write_many(path: Path, count: int, contents: Sequence[bytes]) -> Path:
    """An archive, or a list, of so many tiles, which have these contents by turns."""
    names = (f"slide_{number % 97:03d}/tile_{number:07d}.png" for number in range(count))
    if path.suffix == ".csv":
        with path.open("w") as file:
            file.write("path\n")
            file.writelines(f"{name}\n" for name in names)
    elif path.suffix == ".tar":
        write_tar(path, zip(names, cycle(contents), strict=False))
    else:
        write_zip(path, zip(names, cycle(contents), strict=False), method=zipfile.ZIP_STORED)
    return path


def list_many(kind: str, count: int, folder: Path) -> ListedMembers:
    """List so many members of an archive or a list, whose tiles are empty but for their names."""
    path = write_many(folder / f"listed.{kind}", count, [b""])
    command = [sys.executable, "-c", LISTING, str(path), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    path.unlink()
    return ListedMembers(**json.loads(done.stdout))


def run_many(kind: str, count: int, folder: Path) -> FakeRun:
    """Run over so many small tiles in an archive, to the finished table."""
    path = write_many(folder / f"run.{kind}", count, small_tiles(folder / "tiles"))
    done = fake_run(path, folder / "run.csv")
    path.unlink()
    return done


def small_tiles(folder: Path) -> list[bytes]:
    """A few of the tiles, so small that a million of them fit anywhere."""
    tiles = (decode(data, contract=CONTRACT) for _, data in islice(members_of(folder), SMALL_TILES))
    return [cv2.imencode(".jpg", cv2.resize(tile, (SMALL_PX, SMALL_PX)))[1].tobytes() for tile in tiles]


@click.command()
@click.argument("tiles", type=click.Path(path_type=Path, exists=True))
@click.option("--count", default=1024, show_default=True, help="Tiles of the folder that are taken.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--workers", default=usable_cpus(), show_default=True)
@click.option(
    "--members", default=1_000_000, show_default=True, help="How many members are listed and run; 0 leaves it out."
)
@click.option("--store/--no-store", default=True, show_default=True, help="Also from an object store on loopback.")
@json_option
def main(tiles: Path, count: int, rounds: int, workers: int, members: int, store: bool, report: Path | None) -> None:
    """Race sources of tiles against the folder."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        sample_tiles(tiles, folder / "tiles", count=count)
        sources = pack(folder / "tiles", folder)
        if store:
            sources["s3 on loopback"] = stack.enter_context(object_store(folder / "tiles"))
        print(f"{count} tiles, {workers} decode workers, {rounds} rounds by turns; {describe()['machine']}")
        ratios = race(sources, folder, rounds=rounds, workers=workers)
        listed = {}
        for kind in ("csv", "tar", "zip") if members else ():
            listed[kind] = many = list_many(kind, members, folder)
            print(f"  {kind:12} {many.found} listed in {many.seconds:.1f} s, {many.after - many.before:.0f} MB more")
        runs = {}
        for kind in ("tar", "zip") if members else ():
            runs[kind] = {count: run_many(kind, count, folder) for count in (FEW, members)}
            print(f"  {kind:12} {growth_words(runs[kind][FEW], runs[kind][members])}")
        publish(
            report,
            {
                "benchmark": "sources",
                "tiles": count,
                "workers": workers,
                "ratios": ratios,
                "listed": {kind: asdict(many) for kind, many in listed.items()},
                "runs": {kind: {count: asdict(run) for count, run in of.items()} for kind, of in runs.items()},
            },
        )


if __name__ == "__main__":
    main()
