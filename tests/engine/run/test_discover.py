"""Every tile is found, once, in byte order of its path, and nothing that is not a tile."""

from __future__ import annotations

import errno
import io
import logging
import os
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.errors import ListingError, OutputError, UsageError
from cervix_engine.tiles import discover as module
from cervix_engine.tiles.discover import Listing, discover

SUFFIXES = (b".jpg", b".jpeg", b".png", b".bmp", b".tif", b".tiff", b".webp")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "study").mkdir()
    return tmp_path / "study"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def paths(listing: Listing) -> list[str]:
    return [tile.path for tile in listing]


def test_nested_folders_in_byte_order(root: Path, spool: Path) -> None:
    # '-' < '.' < '/' < '0': a folder's tiles do not simply follow its name.
    touch(root, "a/2.png", "a.png", "a-1.png", "a0.png", "Z.png", "a/b/1.png", "é.png", "z.png")
    listing = discover(root, spool=spool)
    assert paths(listing) == ["Z.png", "a-1.png", "a.png", "a/2.png", "a/b/1.png", "a0.png", "z.png", "é.png"]
    assert [tile.index for tile in listing] == list(range(8))
    assert (listing.found, listing.ignored) == (8, 0)


def test_the_slide_is_the_parent_folder_else_the_root(root: Path, spool: Path) -> None:
    touch(root, "1.png", "s1/2.png", "case/s2/3.png")
    slides = {tile.path: tile.slide_id for tile in discover(root, spool=spool)}
    assert slides == {"1.png": "study", "s1/2.png": "s1", "case/s2/3.png": "s2"}


def test_the_root_s_name_is_the_folder_s_own(root: Path, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root, "1.png")
    monkeypatch.chdir(root)
    assert [tile.slide_id for tile in discover(Path(), spool=spool)] == ["study"]


def test_suffixes_in_any_case_and_what_is_ignored(root: Path, spool: Path) -> None:
    good = [f"{index}{suffix.decode()}" for index, suffix in enumerate(SUFFIXES)]
    touch(root, *good, "u.JPG", "v.TiFf", "x.y.PNG")
    touch(root, "notes.txt", "png", "a.png.part", "b.svs", "sub/Thumbs.db", "c.png ")
    listing = discover(root, spool=spool)
    assert set(paths(listing)) == {*good, "u.JPG", "v.TiFf", "x.y.PNG"}
    assert listing.ignored == 6


def test_hidden_names_are_no_tiles_at_any_depth(root: Path, spool: Path) -> None:
    touch(root, "a.png", ".b.png", ".cache/c.png", "d/.e/f.png", "d/.g.png", ".png")
    assert paths(discover(root, spool=spool)) == ["a.png"]


def test_a_hidden_root_is_what_was_asked_for(tmp_path: Path, spool: Path) -> None:
    touch(tmp_path / ".hidden", "a.png")
    assert paths(discover(tmp_path / ".hidden", spool=spool)) == ["a.png"]


def test_a_folder_named_like_a_tile_is_a_folder(root: Path, spool: Path) -> None:
    touch(root, "slide.png/1.png")
    listing = discover(root, spool=spool)
    assert paths(listing) == ["slide.png/1.png"]
    assert listing.ignored == 0


def test_links_inside_the_root_are_tiles_and_links_out_of_it_are_not(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(root, "a/real.png")
    touch(tmp_path, "outside.png", "study-2/near.png")
    (root / "relative.png").symlink_to("a/real.png")
    (root / "absolute.png").symlink_to(root / "a/real.png")
    (root / "out.png").symlink_to(tmp_path / "outside.png")
    (root / "near.png").symlink_to("../study-2/near.png")  # a path that only begins like the root's
    (root / "dangling.png").symlink_to("a/gone.png")
    listing = discover(root, spool=spool)
    assert paths(listing) == ["a/real.png", "absolute.png", "relative.png"]
    assert listing.ignored == 3


def test_links_to_folders_are_not_entered(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(root, "a/1.png")
    touch(tmp_path, "elsewhere/2.png")
    (root / "again").symlink_to("a", target_is_directory=True)
    (root / "a/up").symlink_to("..", target_is_directory=True)
    (root / "out").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "folder.png").symlink_to("a", target_is_directory=True)
    assert paths(discover(root, spool=spool)) == ["a/1.png"]


def test_link_loops_end(root: Path, spool: Path) -> None:
    touch(root, "a.png")
    (root / "self.png").symlink_to("self.png")
    (root / "ping.png").symlink_to("pong.png")
    (root / "pong.png").symlink_to("ping.png")
    listing = discover(root, spool=spool)
    assert paths(listing) == ["a.png"]
    assert listing.ignored == 3


def test_the_root_may_be_a_link(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(root, "a.png")
    (root / "b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    listing = discover(tmp_path / "link", spool=spool)
    assert paths(listing) == ["a.png", "b.png"]


@pytest.mark.timeout(300)
def test_special_files_are_ignored_and_never_opened(root: Path, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root, "a.png")
    os.mkfifo(root / "pipe.png")
    monkeypatch.chdir(root)  # a socket's path may have 107 bytes only
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        listing = discover(root, spool=spool)
    assert paths(listing) == ["a.png"]
    assert listing.ignored == 2


def test_an_empty_folder_is_refused_with_a_count(root: Path, spool: Path) -> None:
    with pytest.raises(UsageError, match=r"no tiles in .*: 0 other files"):
        discover(root, spool=spool)
    touch(root, "a.txt", "b/c.svs", ".d.png")
    with pytest.raises(UsageError, match=r"no tiles in .*: 2 other files"):
        discover(root, spool=spool)


def test_a_missing_root_and_a_file_are_refused(root: Path, spool: Path) -> None:
    touch(root, "a.png")
    with pytest.raises(UsageError, match="no such folder"):
        discover(root / "gone", spool=spool)
    with pytest.raises(UsageError, match="not a folder"):
        discover(root / "a.png", spool=spool)


@pytest.mark.parametrize("refused", ["", "s2", "s2/deep"])
def test_a_folder_that_cannot_be_listed_stops_the_search(
    root: Path, spool: Path, refused: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(root, "1.png", "s1/2.png", "s2/3.png", "s2/deep/4.png")
    denied = os.path.normpath(os.fsencode(root / refused))
    scandir = os.scandir

    def guarded(folder: bytes) -> object:
        if os.path.normpath(folder) == denied:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    with (
        caplog.at_level(logging.DEBUG, "cervix_engine"),
        pytest.raises(ListingError, match=r"cannot be listed \(Permission denied\)") as raised,
    ):
        discover(root, spool=spool)
    # Names can identify patients: they are in the debug log alone.
    assert root.name not in str(raised.value)
    assert f"{root}/{refused}"[-8:] in caplog.text


@pytest.mark.parametrize(
    ("number", "found"),
    [
        (errno.ENOENT, ["1.png", "s2/3.png"]),  # the file went away meanwhile
        (errno.EIO, None),
        (errno.EACCES, None),  # a folder that can be listed and not entered
        (errno.ESTALE, None),
    ],
)
def test_a_tile_that_cannot_be_looked_at_stops_the_search_and_is_never_lost(
    root: Path, spool: Path, number: int, found: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(root, "1.png", "s1/2.png", "s2/3.png")
    module_status = module._tile_status

    class Refusing:
        def __init__(self, entry: os.DirEntry[bytes]) -> None:
            self._entry = entry

        def stat(self) -> os.stat_result:
            raise OSError(number, os.strerror(number))

        def __getattr__(self, name: str) -> object:
            return getattr(self._entry, name)

    def status(entry: os.DirEntry[bytes], inside: bytes) -> os.stat_result | None:
        refused = cast(os.DirEntry[bytes], Refusing(entry)) if entry.name == b"2.png" else entry
        return module_status(refused, inside)

    monkeypatch.setattr(module, "_tile_status", status)
    if found is not None:
        assert paths(discover(root, spool=spool)) == found
        return
    with pytest.raises(ListingError, match="cannot be listed") as raised:
        discover(root, spool=spool)
    assert "2.png" not in str(raised.value)


def test_a_spool_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    touch(root, "a.png")
    with pytest.raises(OutputError, match="cannot write the listing"):
        discover(root, spool=tmp_path / "gone")


@pytest.mark.parametrize("run_length", [5, 64, 699, 700, 10_000])
def test_a_listing_of_many_sort_runs_equals_that_of_one(
    root: Path, spool: Path, run_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 150 bytes a record: more than one block of the reader, so records lie across blocks.
    names = [f"{'s' * (index % 5)}/{index * 7919 % 700:03d}-{'x' * 130}.png" for index in range(700)]
    touch(root, *(name.lstrip("/") for name in names))
    monkeypatch.setattr(module, "_RUN_LENGTH", run_length)
    listing = discover(root, spool=spool)
    assert paths(listing) == sorted(name.lstrip("/") for name in names)
    assert listing.found == 700
    assert {entry.name for entry in spool.iterdir()} == {"listing"}


@pytest.mark.parametrize("block", range(1, 40))
def test_records_are_read_whole_wherever_a_block_ends(block: int) -> None:
    records = [(b"a/%d.png" % index, index * 37, 10**18 + index) for index in range(20)] + [(b"\xff\n.png", 0, -1)]
    data = io.BytesIO(b"".join(b"%b\0%d\0%d\0" % record for record in records))
    reader = SimpleNamespace(read=lambda _: data.read(block))
    assert list(module._read_records(reader)) == records  # type: ignore[arg-type]


NAME = st.binary(min_size=1, max_size=24).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))
FOLDER = NAME.map(lambda raw: raw + b"d")
FILE = st.tuples(NAME, st.sampled_from([*SUFFIXES, b".PNG", b".txt", b"x"])).map(b"".join)
TREE = st.sets(st.tuples(st.lists(FOLDER, max_size=2).map(tuple), FILE), min_size=1, max_size=12)


def _is_tile(parts: tuple[bytes, ...]) -> bool:
    return not any(part.startswith(b".") for part in parts) and parts[-1].lower().endswith(SUFFIXES)


@settings(max_examples=60, deadline=None)
@given(tree=TREE)
def test_any_names_that_a_file_system_can_hold(tree: set[tuple[tuple[bytes, ...], bytes]]) -> None:
    everything = [(*folders, file) for folders, file in tree]
    expected = sorted(b"/".join(parts) for parts in everything if _is_tile(parts))
    with tempfile.TemporaryDirectory() as scratch:
        root, spool = Path(scratch, "root"), Path(scratch, "spool")
        root.mkdir()
        spool.mkdir()
        for parts in everything:
            file = os.path.join(os.fsencode(root), *parts)  # noqa: PTH118 - bytes, which pathlib has not
            os.makedirs(os.path.dirname(file), exist_ok=True)  # noqa: PTH103, PTH120
            with open(file, "wb"):  # noqa: PTH123
                pass
        if not expected:
            with pytest.raises(UsageError):
                discover(root, spool=spool)
            return
        found = list(discover(root, spool=spool))
        assert [os.fsencode(tile.path) for tile in found] == expected
        for tile in found:
            assert (root / tile.path).is_file()
            folder = os.fsencode(tile.path).rpartition(b"/")[0].rpartition(b"/")[2]
            assert os.fsencode(tile.slide_id) == (folder or b"root")
