"""Tiles on stores: found, read, asked for again, and never failed by the million because the store is away."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import pytest

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import ListingError, TileReadError, UsageError
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.stream import StreamSettings, batches_of, stream
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.sources.open import open_source
from cervix_engine.tiles.sources.remote import TILES_AT_ONCE, Remote
from cervix_engine.tiles.sources.store import UNKNOWN_SIZE, record_of
from cervix_engine.tiles.sources.web import TransferLimits
from cervix_engine.tiles.tile import Outcome, TileFailure, TileStamp
from engine.run.support import CONTRACT, PATIENCE_S, choose_fake, draw_folder, run_setup
from engine.tiles.sources.servers import Faults, address_of, web_server

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

QUICK = (0.001, 0.002, 0.004, 0.01)
TILES = {"a.png": b"one", "slide 1/ü#?%.jpg": b"two" * 50_000, "slide 1/deep/c.tif": b"three"}
BESIDE = ("notes.txt", "slide 1/.hidden.png", "@eaDir/a.png")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    for name, data in [*TILES.items(), *((name, b"x") for name in BESIDE)]:
        path = tmp_path / "served" / "study" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "served"


def test_a_web_server_s_tiles_are_those_of_its_folder(served: Path, tmp_path: Path) -> None:
    with web_server(served, Faults()) as server:
        source = open_source(f"{address_of(server)}/study/")
        listing = discover(source, spool=tmp_path)
        assert list(listing.paths()) == sorted(TILES, key=os.fsencode)
        assert listing.ignored_by == {"suffix": 1, "hidden": 1, "system_folder": 1}
        reader = pickle.loads(pickle.dumps(source.reader()))
        tiles = [(tile.path, tile.stamp) for tile in listing]
        reader.expect(tiles)
        assert {path: reader.read(path, stamp) for path, stamp in tiles} == TILES
        assert source.slide_name == "study"
        assert source.identity == f"{address_of(server)}/study"


def test_requests_that_fail_are_repeated(served: Path, tmp_path: Path) -> None:
    faults = Faults(every=3)
    with web_server(served, faults) as server:
        source = Remote(f"{address_of(server)}/study", QUICK)
        listing = discover(source, spool=tmp_path)
        reader = source.reader()
        for _ in range(20):
            reader.expect([(tile.path, tile.stamp) for tile in listing])
            assert {tile.path: reader.read(tile.path, tile.stamp) for tile in listing} == TILES
    assert faults.requests > 60


def test_a_tile_that_is_gone_is_a_failed_row_and_a_store_that_is_gone_stops_the_run(served: Path) -> None:
    with web_server(served, Faults()) as server:
        reader = Remote(f"{address_of(server)}/study", QUICK).reader()
        with pytest.raises(TileReadError, match=r"^unreadable: not found$"):
            reader.read("gone.png", TileStamp(3, 0))
        reader.require_there()
        assert reader.read("a.png", TileStamp(UNKNOWN_SIZE, 0)) == b"one"
        with pytest.raises(TileReadError, match="changed: not the object that was listed: another size"):
            reader.read("a.png", TileStamp(4, 0))
        with pytest.raises(TileReadError, match="too_large"):
            reader.read("a.png", TileStamp(2**40, 0))
    with pytest.raises(TileReadError, match="unreadable: its requests fail: Client"):
        reader.read("a.png", TileStamp(UNKNOWN_SIZE, 0))
    with pytest.raises(ListingError, match=r"cannot reach http:// \(.*\); the run can go on later"):
        reader.require_there()


def test_a_listing_of_a_store_that_is_away_or_empty_is_refused(served: Path, tmp_path: Path) -> None:
    with web_server(served, Faults()) as server:
        address = address_of(server)
        with pytest.raises(UsageError, match="there is nothing at this http:// address"):
            discover(Remote(f"{address}/none", QUICK), spool=tmp_path)
    with pytest.raises(ListingError, match=r"cannot list http:// \(Client"):
        discover(Remote(f"{address}/study", QUICK), spool=tmp_path)


def test_an_outage_stops_a_run_and_fails_no_tile(tmp_path: Path) -> None:
    draw_folder(tmp_path / "served", 40)
    with web_server(tmp_path / "served", Faults()) as server:
        source = Remote(address_of(server), QUICK)
        (tmp_path / "spool").mkdir()
        tiles, seen = list(discover(source, spool=tmp_path / "spool")) * 20, list[Outcome]()
        settings = StreamSettings(source, CONTRACT, 4, 2)

        def predict() -> None:
            for result in stream(batches_of(tiles, 4), backend=FakeBackend(), settings=settings, stats=StreamStats()):
                seen.extend(result.outcomes)
                if len(seen) == 8:
                    server.shutdown()
                    server.server_close()

        with pytest.raises(ListingError, match="cannot reach http://"):
            predict()
    assert 8 <= len(seen) < len(tiles)
    assert not [outcome for outcome in seen if isinstance(outcome, TileFailure)]


def test_a_run_on_a_server_that_fails_a_twentieth_of_its_requests_is_that_of_the_folder(
    tmp_path: Path, fake_bundle: Bundle
) -> None:
    draw_folder(tmp_path / "study", 90)
    faults, setup = Faults(every=20), run_setup(choose=choose_fake)
    with web_server(tmp_path, faults) as server:
        for out, tiles in (("web.csv", f"{address_of(server)}/study"), ("folder.csv", tmp_path / "study")):
            out_folder = tmp_path / "out"
            out_folder.mkdir(exist_ok=True)
            predict_folder(BatchConfig(tiles, out_folder / out, fake_bundle.root, hash_tiles=True), setup=setup)
    assert (tmp_path / "out" / "web.csv").read_bytes() == (tmp_path / "out" / "folder.csv").read_bytes()
    assert faults.requests > 95


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://user:secret@host/tiles", "a user or a password would be written"),
        ("https://host/tiles?X-Amz-Signature=secret", r"with \? or # would be written"),
        ("nowhere://host/tiles", "unknown kind of address nowhere://"),
    ],
)
def test_addresses_with_keys_are_refused_without_showing_them(
    address: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(UsageError, match=message) as refused:
        open_source(address).check()
    assert "secret" not in str(refused.value) + caplog.text


def test_a_command_with_keys_leaves_them_nowhere(tmp_path: Path, fake_bundle: Bundle) -> None:
    program = "import sys; from cervix_engine.cli.batch import main; main(sys.argv[1:])"
    tiles, log = "https://user:secret@127.0.0.1/tiles?key=secret", tmp_path / "run.log"
    options = ["--out", str(tmp_path / "o.csv"), "--model", str(fake_bundle.root), "--log-file", str(log), "--json"]
    command = [sys.executable, "-c", program, tiles, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2, done.stderr
    assert log.read_text(encoding="utf-8").count("https://…@127.0.0.1/tiles?…") == 1
    written = [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()]
    assert "secret" not in "".join([done.stdout, done.stderr, *written])


def test_whole_slides_are_not_looked_for_on_a_store() -> None:
    with pytest.raises(UsageError, match="whole slides are read from files of this machine"):
        open_source("s3://bucket/slides", grid=GridRules())


def test_what_stores_say_of_a_tile() -> None:
    at = datetime(2024, 2, 3, 4, 5, 6, 789, UTC)
    ns = 1706933106_000789_000
    tag = '"9b2cf535f27731c974343645a3985328"'
    assert record_of(b"a", {"size": 7, "LastModified": at, "ETag": tag}) == (b"a", 7, ns, tag.strip('"').encode())
    assert record_of(b"a", {"size": 7, "updated": "2024-02-03T04:05:06.000789Z", "etag": "CJ=="}) == (
        b"a",
        7,
        ns,
        b"CJ==",
    )
    assert record_of(b"a", {"size": None, "mtime": "not a time"}) == (b"a", UNKNOWN_SIZE, 0, b"")
    assert record_of(b"a", {"size": 7, "mtime": 12.5}) == (b"a", 7, 12_500_000_000, b"")


@pytest.fixture
def bucket(served: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="slides")
        for path in (path for path in served.rglob("*") if path.is_file()):
            client.put_object(Bucket="slides", Key=path.relative_to(served).as_posix(), Body=path.read_bytes())
        client.close()
        yield "s3://slides/study"
    finally:
        server.stop()


def test_an_object_store_s_tiles_are_those_of_the_folder(bucket: str, tmp_path: Path) -> None:
    source = Remote(f"{bucket}/", QUICK)
    listing = discover(source, spool=tmp_path)
    assert list(listing.paths()) == sorted(TILES, key=os.fsencode)
    assert listing.ignored_by == {"suffix": 1, "hidden": 1, "system_folder": 1}
    tiles = [(tile.path, tile.stamp) for tile in listing]
    assert all(stamp and stamp.mtime_ns > 10**18 and len(stamp.where) == 32 for _, stamp in tiles)
    reader = source.reader()
    reader.expect(tiles)
    assert {path: reader.read(path, stamp) for path, stamp in tiles} == TILES
    names = [b"slide 1/deep/c.tif", b"gone.png", b"a.png"]
    stored = {record[0]: record for record in listing.records()}
    again = list(source.again(names, spool=tmp_path))
    assert [record[:2] for record in again] == [(name, stored.get(name, (name, 0))[1]) for name in names]
    reader.require_there()
    with pytest.raises(TileReadError, match="not found"):
        reader.read("gone.png", None)
    with pytest.raises(ListingError):
        Remote("s3://other-bucket/study", QUICK).reader().require_there()
    assert source.tiles_at_once == TILES_AT_ONCE


# ---- servers that answer too much, too slowly, or in other words


class OddHandler(BaseHTTPRequestHandler):
    """A page of links, tiles, and what a server may do in place of one."""

    links = (
        '<a href="a&amp;b.png">x</a> <a href="c%20d.png">x</a> <a href="c d.png">x</a> <a href="sub&amp;dir/">x</a> '
    )
    links += '<a href="e%2Ff.png">x</a> <a href="per%2541.png">x</a> <a href="x.png">x</a>'
    pages: ClassVar = {"/": links, "/sub&dir/": '<a href="g&#38;h.png">x</a>'}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = unquote(self.path)
        self.asked.append(path)
        if path in self.pages:
            self.answer(self.pages[path].encode(), "text/html")
        elif path == "/hang.png":
            self.server.over.wait(PATIENCE_S)  # type: ignore[attr-defined]
        elif path == "/drip.png":
            self.send_response(200)
            self.end_headers()
            while not self.server.over.wait(0.01):  # type: ignore[attr-defined]
                self.wfile.write(b".")
        elif path in ("/endless.png", "/endless too.png"):
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(bytes(1000))
        else:
            self.answer(path.encode(), "image/png")
        self.close_connection = True

    def answer(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def odd_server() -> Iterator[str]:
    OddHandler.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), OddHandler)
    server.daemon_threads, server.block_on_close = True, False
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients go away
    server.over = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    yield address_of(server)
    server.over.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def test_links_are_html(odd_server: str, tmp_path: Path) -> None:
    source = Remote(odd_server, QUICK)
    listing = discover(source, spool=tmp_path)
    names = ["a&b.png", "c d.png", "per%41.png", "sub&dir/g&h.png", "x.png"]
    assert list(listing.paths()) == names
    assert listing.ignored_by == {"link": 1}
    reader = source.reader()
    reader.expect([(name, None) for name in names[:2]])
    assert [reader.read(name, None) for name in names] == [f"/{name}".encode() for name in names]


LIMITS = TransferLimits(piece_s=0.1, repeat_s=0.15, tile_bytes=100_000)


@pytest.mark.parametrize("name", ["hang.png", "drip.png"])
def test_a_tile_that_does_not_come_is_a_failed_row_in_bounded_time(odd_server: str, name: str) -> None:
    reader = Remote(odd_server, QUICK, LIMITS).reader()
    reader.expect([("x.png", None), (name, None)])
    assert reader.read("x.png", None) == b"/x.png"
    with pytest.raises(TileReadError, match=r"^unreadable: its requests fail: no answer in time$"):
        reader.read(name, None)
    assert OddHandler.asked.count(f"/{name}") == 3  # with the others, and alone until its time is over
    reader.require_there()


def test_a_tile_without_end_is_too_large_and_takes_no_more_memory(odd_server: str) -> None:
    reader = Remote(odd_server, QUICK, LIMITS).reader()
    endless = ("endless.png", "endless too.png")
    reader.expect([(name, None) for name in ("x.png", *endless)])
    for name in endless:
        with pytest.raises(TileReadError, match=r"^too_large: more than 100000 bytes$"):
            reader.read(name, None)
    assert reader.read("x.png", None) == b"/x.png"


def test_a_tile_that_says_it_is_too_large_is_not_fetched(odd_server: str) -> None:
    reader = Remote(odd_server, QUICK, TransferLimits(tile_bytes=5)).reader()
    with pytest.raises(TileReadError, match=r"^too_large: 6 bytes, limit 5$"):
        reader.read("x.png", None)


def test_a_slow_transfer_is_not_cut(odd_server: str) -> None:
    reader = Remote(odd_server, QUICK, TransferLimits(piece_s=5.0, piece_bytes=3, tile_bytes=30)).reader()
    with pytest.raises(TileReadError, match="too_large"):  # piece by piece, each of which comes in time
        reader.read("drip.png", None)


def test_tiles_that_are_fetched_at_once_are_no_larger_together_than_one_may_be(odd_server: str) -> None:
    limits = TransferLimits(tile_bytes=15)
    reader = Remote(odd_server, QUICK, limits).reader()
    names = ["x.png", "y.png", "z.png"]
    reader.expect([(name, None) for name in names])
    assert [reader.read(name, None) for name in names] == [b"/x.png", b"/y.png", b"/z.png"]
    assert len(OddHandler.asked) == 4  # two at once, and the third again


def test_what_a_store_lists_without_a_size_is_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bytes(11))
    with pytest.raises(TileReadError, match=r"^too_large: more than 10 bytes$"):
        Remote(f"file://{tmp_path}", QUICK, TransferLimits(tile_bytes=10)).reader().read("a.png", None)
    assert Remote(f"file://{tmp_path}", QUICK, TransferLimits(tile_bytes=11)).reader().read("a.png", None) == bytes(11)


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (
            "ftp://127.0.0.1:1/x",
            ListingError,
            r"^cannot reach ftp://127\.0\.0\.1:1/x \(ConnectionRefusedError\); the run",
        ),
        ("dir://x", UsageError, r"^cannot open dir://x: \w+: .+"),
        ("zip://::/tmp/x.zip", UsageError, "^zip://::/tmp/x.zip: addresses that are chained by :: are not read"),
        ("file://t", UsageError, "^file://t: a path behind file:// begins with a slash; or leave file:// out"),
        ("http://127.0.0.1:x/", UsageError, "^http://127.0.0.1:x/: Port could not be cast"),
        ("http://[::1/", UsageError, "this is no address: Invalid IPv6 URL"),
        ("http://[::1]:1", ListingError, "cannot list http://"),
    ],
)
def test_an_address_that_cannot_be_opened_is_one_line(
    address: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        discover(Remote(address, QUICK), spool=tmp_path)
