"""Every tile is found, once, in byte order of its path, and nothing that is not a tile."""

from __future__ import annotations

import errno
import io
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.errors import ListingError, OutputError, UsageError
from cervix_engine.tiles.discover import compared, discover, ignored_words
from cervix_engine.tiles.listing import FolderChanges, Listing, read_records, write_sorted
from cervix_engine.tiles.sources.folder import Folder, Walk

SUFFIXES = (b".jpg", b".jpeg", b".png", b".bmp", b".tif", b".tiff", b".webp", b".jp2", b".j2k")


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
    listing = discover(Folder(root), spool=spool)
    assert paths(listing) == ["Z.png", "a-1.png", "a.png", "a/2.png", "a/b/1.png", "a0.png", "z.png", "é.png"]
    assert [tile.index for tile in listing] == list(range(8))
    assert (listing.found, listing.ignored) == (8, 0)


def test_suffixes_in_any_case_and_what_is_ignored(root: Path, spool: Path) -> None:
    good = [f"{index}{suffix.decode()}" for index, suffix in enumerate(SUFFIXES)]
    touch(root, *good, "u.JPG", "v.TiFf", "x.y.PNG")
    touch(root, "notes.txt", "png", "a.png.part", "b.svs", "sub/Thumbs.db", "c.png ")
    listing = discover(Folder(root), spool=spool)
    assert set(paths(listing)) == {*good, "u.JPG", "v.TiFf", "x.y.PNG"}
    assert listing.ignored == 6
    assert listing.ignored_by == {"suffix": 5, "whole_slide": 1}


def test_hidden_names_are_no_tiles_at_any_depth(root: Path, spool: Path) -> None:
    touch(root, "a.png", ".b.png", ".cache/c.png", ".cache/d.png", "d/.e/f.png", "d/.g.png", ".png")
    listing = discover(Folder(root), spool=spool)
    assert paths(listing) == ["a.png"]
    # A folder that is not entered counts once.
    assert (listing.ignored, listing.ignored_by) == (5, {"hidden": 5})


def test_a_hidden_root_is_what_was_asked_for(tmp_path: Path, spool: Path) -> None:
    touch(tmp_path / ".hidden", "a.png")
    assert paths(discover(Folder(tmp_path / ".hidden"), spool=spool)) == ["a.png"]


def test_a_folder_named_like_a_tile_is_a_folder(root: Path, spool: Path) -> None:
    touch(root, "slide.png/1.png")
    listing = discover(Folder(root), spool=spool)
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
    listing = discover(Folder(root), spool=spool)
    assert paths(listing) == ["a/real.png", "absolute.png", "relative.png"]
    assert listing.ignored_by == {"link": 2, "gone": 1}


def test_links_to_folders_are_not_entered(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(root, "a/1.png")
    touch(tmp_path, "elsewhere/2.png")
    (root / "again").symlink_to("a", target_is_directory=True)
    (root / "a/up").symlink_to("..", target_is_directory=True)
    (root / "out").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "folder.png").symlink_to("a", target_is_directory=True)
    listing = discover(Folder(root), spool=spool)
    assert paths(listing) == ["a/1.png"]
    assert listing.ignored_by == {"link": 4}


def test_link_loops_end(root: Path, spool: Path) -> None:
    touch(root, "a.png")
    (root / "self.png").symlink_to("self.png")
    (root / "ping.png").symlink_to("pong.png")
    (root / "pong.png").symlink_to("ping.png")
    listing = discover(Folder(root), spool=spool)
    assert paths(listing) == ["a.png"]
    assert listing.ignored_by == {"gone": 3}


def test_the_root_may_be_a_link(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(root, "a.png")
    (root / "b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    listing = discover(Folder(tmp_path / "link"), spool=spool)
    assert paths(listing) == ["a.png", "b.png"]


@pytest.mark.timeout(300)
def test_special_files_are_ignored_and_never_opened(root: Path, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root, "a.png")
    os.mkfifo(root / "pipe.png")
    monkeypatch.chdir(root)  # a socket's path may have 107 bytes only
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        listing = discover(Folder(root), spool=spool)
    assert paths(listing) == ["a.png"]
    assert listing.ignored_by == {"special": 2}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "0 other files"),
        (
            ["a.txt"],
            "1 other files (1 with another suffix); known suffixes are .jpg .jpeg .png .bmp .tif .tiff .webp .jp2 .j2k",
        ),
        ([".a.png", "b/.c.png"], "2 other files (2 hidden)"),
        (["@eaDir/a.png", "b/@eaDir/c.png", "#recycle/d.png"], "3 other files (3 system folders)"),
        (["a.svs", "b.NDPI"], "2 other files (2 whole slides); --whole-slides cuts whole slides into tiles"),
        (
            ["s.mrxs", "s/Data0000.dat", "s/Slidedat.ini"],
            "3 other files (2 with another suffix, 1 whole slides); known suffixes",
        ),
    ],
)
def test_a_folder_without_a_tile_is_refused_with_the_true_reason(
    root: Path, spool: Path, names: list[str], reason: str
) -> None:
    touch(root, *names)
    with pytest.raises(UsageError) as refused:
        discover(Folder(root), spool=spool)
    assert str(refused.value).startswith(f"no tiles in {root}: {reason}")


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN", "__MACOSX"),
        *("System Volume Information", "lost+found", "~snapshot", ".snapshot", ".Trash-1000"),
    ],
)
def test_what_systems_put_among_tiles_is_not_entered(root: Path, spool: Path, name: str) -> None:
    touch(root, "a.png", f"{name}/thumbnail.jpg", f"b/{name}/deep/thumbnail.jpg", f"{name}.png")
    listing = discover(Folder(root), spool=spool)
    hidden = name.startswith(".")
    assert paths(listing) == (["a.png"] if hidden else sorted(["a.png", f"{name}.png"]))
    assert listing.ignored_by == ({"hidden": 3} if hidden else {"system_folder": 2})


def test_a_synology_share_has_no_thumbnails_for_tiles(root: Path, spool: Path) -> None:
    tiles = [f"slide_{slide}/x{x}_y0.jpg" for slide in "ab" for x in range(3)]
    touch(root, *tiles, "#recycle/old.jpg", "slide_a/Thumbs.db")
    for tile in tiles:
        folder, _, name = tile.rpartition("/")
        touch(root, f"{folder}/@eaDir/{name}/SYNOPHOTO_THUMB_M.jpg", f"{folder}/@eaDir/{name}@SynoEAStream")
    listing = discover(Folder(root), spool=spool)
    assert paths(listing) == sorted(tiles)
    assert listing.ignored_by == {"system_folder": 3, "suffix": 1}
    assert ignored_words(listing.ignored_by) == "3 system folders, 1 with another suffix"


def test_what_is_passed_over_is_named_in_the_debug_log_alone(
    root: Path, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(root, "a.png", "doe/.b.png", "doe/c.txt", "@eaDir/d.png")
    with caplog.at_level(logging.DEBUG, "cervix_engine"):
        discover(Folder(root), spool=spool)
    assert {(record.levelname, record.getMessage()) for record in caplog.records} == {
        ("DEBUG", "ignored, hidden: 'doe/.b.png'"),
        ("DEBUG", "ignored, suffix: 'doe/c.txt'"),
        ("DEBUG", "ignored, system_folder: '@eaDir'"),
    }


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A dataset as Hugging Face's cache holds it: links from names to blobs, beside the folder of names."""
    top = tmp_path / "datasets--smears"
    revision = top / "snapshots" / "0123abc"
    (revision / "slide_1").mkdir(parents=True)
    (top / "blobs").mkdir()
    for number, name in enumerate(["a.jpg", "slide_1/b.jpg", "slide_1/c.png", "README.md"]):
        blob = top / "blobs" / f"{number:064x}"
        blob.write_bytes(b"x" * (number + 1))
        up = "../" * (2 + name.count("/"))
        (revision / name).symlink_to(f"{up}blobs/{blob.name}")
    return revision


def test_a_snapshot_of_links_is_refused_as_such_and_followed_when_asked(snapshot: Path, spool: Path) -> None:
    with pytest.raises(
        UsageError, match=r"files \(3 links that lead elsewhere, 1 with another suffix\); --follow-links"
    ):
        discover(Folder(snapshot), spool=spool)
    listing = discover(Folder(snapshot, follow_links=True), spool=spool)
    assert paths(listing) == ["a.jpg", "slide_1/b.jpg", "slide_1/c.png"]
    assert listing.ignored_by == {"suffix": 1}
    # The stamps are those of the real files.
    assert [tile.stamp.size_bytes for tile in listing if tile.stamp] == [1, 2, 3]
    assert compared(listing, spool=spool).changes == FolderChanges(0, 0)
    # From above, the blobs lie inside the root, and their own names have no suffix.
    above = discover(Folder(snapshot.parents[1]), spool=spool)
    assert paths(above) == [f"snapshots/0123abc/{name}" for name in ("a.jpg", "slide_1/b.jpg", "slide_1/c.png")]


def test_a_staged_folder_of_links_to_files_and_folders_elsewhere(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(tmp_path, "work/ab/1/x.png", "work/cd/slide_2/y.png", "work/cd/slide_2/deep/z.png", "work/notes.txt")
    (root / "x.png").symlink_to(tmp_path / "work/ab/1/x.png")
    (root / "slide_2").symlink_to(tmp_path / "work/cd/slide_2", target_is_directory=True)
    (root / "notes.txt").symlink_to(tmp_path / "work/notes.txt")
    (root / "gone.png").symlink_to(tmp_path / "work/gone.png")
    with pytest.raises(UsageError, match=r"\(2 links that lead elsewhere, 1 broken links or gone meanwhile, 1 with"):
        discover(Folder(root), spool=spool)
    listing = discover(Folder(root, follow_links=True), spool=spool)
    assert paths(listing) == ["slide_2/deep/z.png", "slide_2/y.png", "x.png"]
    assert listing.ignored_by == {"suffix": 1, "gone": 1}


def test_followed_links_that_lead_back_end(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(root, "a/b/1.png")
    touch(tmp_path, "elsewhere/2.png")
    (root / "a/b/up").symlink_to("..", target_is_directory=True)
    (root / "self").symlink_to(".", target_is_directory=True)
    (root / "loop").symlink_to("loop")
    (root / "out").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(root, target_is_directory=True)
    listing = discover(Folder(root, follow_links=True), spool=spool)
    assert paths(listing) == ["a/b/1.png", "out/2.png"]
    assert listing.ignored_by == {"link_loop": 3, "suffix": 1}


def test_changes_of_a_folder_are_counted_by_name(root: Path, tmp_path: Path) -> None:
    touch(root, *(f"{folder}/{number}.png" for folder in "abc" for number in range(5)))
    (tmp_path / "stored").mkdir()
    listing = discover(Folder(root), spool=tmp_path / "stored")
    assert compared(listing, spool=tmp_path).changes == FolderChanges(0, 0)
    for name in ("a/0.png", "b/2.png", "b/3.png", "c/4.png"):
        (root / name).unlink()
    touch(root, "0.png", "b/25.png", "c/9.png", "b/1.txt")
    (root / "a/1.png").write_bytes(b"other bytes, which a tile's own stamp shows")
    assert compared(listing, spool=tmp_path).changes == FolderChanges(added=3, removed=4)
    for name in list(paths(listing)):
        (root / name).unlink(missing_ok=True)
    assert compared(listing, spool=tmp_path).changes == FolderChanges(added=3, removed=15)
    assert {entry.name for entry in tmp_path.iterdir()} == {"stored", "study"}


def test_a_missing_root_and_a_file_are_refused(root: Path, spool: Path) -> None:
    touch(root, "a.png")
    with pytest.raises(UsageError, match="no such folder"):
        discover(Folder(root / "gone"), spool=spool)
    with pytest.raises(UsageError, match="not a folder"):
        discover(Folder(root / "a.png"), spool=spool)
    touch(root, "b.svs")
    with pytest.raises(UsageError, match=r"b\.svs is a whole slide, expected a folder: --whole-slides cuts"):
        discover(Folder(root / "b.svs"), spool=spool)


class Entries:
    """Entries of a folder, of which the one named `2.png` cannot be looked at."""

    def __init__(self, folder: bytes, number: int) -> None:
        with os.scandir(folder) as entries:
            self._entries = [self._refusing(entry, number) if entry.name == b"2.png" else entry for entry in entries]

    @staticmethod
    def _refusing(entry: os.DirEntry[bytes], number: int) -> os.DirEntry[bytes]:
        def stat() -> os.stat_result:
            raise OSError(number, os.strerror(number))

        names = ("name", "path", "is_dir", "is_file", "is_symlink")
        return cast("os.DirEntry[bytes]", SimpleNamespace(stat=stat, **{name: getattr(entry, name) for name in names}))

    def __enter__(self) -> Iterator[os.DirEntry[bytes]]:
        return iter(self._entries)

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("refused", ["", "s2", "s2/deep"])
def test_a_folder_that_cannot_be_listed_stops_the_search(
    root: Path, refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    touch(root, "1.png", "s1/2.png", "s2/3.png", "s2/deep/4.png")
    denied = os.path.normpath(os.fsencode(root / refused))

    def guarded(folder: bytes) -> Entries:
        if os.path.normpath(folder) == denied:
            raise PermissionError(errno.EACCES, "Permission denied")
        return Entries(folder, errno.ENOENT)

    with (
        caplog.at_level(logging.DEBUG, "cervix_engine"),
        pytest.raises(ListingError, match=r"cannot be listed \(Permission denied\)") as raised,
    ):
        list(Walk(root, scandir=guarded))
    # Names can identify patients: they are in the debug log alone.
    assert root.name not in str(raised.value)
    assert f"{root}/{refused}"[-8:] in caplog.text


def test_a_tile_that_went_away_meanwhile_is_counted(root: Path) -> None:
    touch(root, "1.png", "s1/2.png", "s2/3.png")
    walk = Walk(root, scandir=lambda folder: Entries(folder, errno.ENOENT))
    assert {name for name, *_ in walk} == {b"1.png", b"s2/3.png"}
    assert walk.ignored == {"gone": 1}


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_tile_that_cannot_be_looked_at_stops_the_search_and_is_never_lost(root: Path, number: int) -> None:
    touch(root, "1.png", "s1/2.png", "s2/3.png")
    with pytest.raises(ListingError, match="cannot be listed") as raised:
        list(Walk(root, scandir=lambda folder: Entries(folder, number)))
    assert "2.png" not in str(raised.value)


def test_a_spool_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    touch(root, "a.png")
    with pytest.raises(OutputError, match="cannot write the listing"):
        discover(Folder(root), spool=tmp_path / "gone")


@pytest.mark.parametrize("run_length", [5, 64, 699, 700, 10_000])
def test_a_listing_of_many_sort_runs_equals_that_of_one(root: Path, spool: Path, run_length: int) -> None:
    # 150 bytes a record: more than one block of the reader, so records lie across blocks.
    names = [f"{'s' * (index % 5)}/{index * 7919 % 700:03d}-{'x' * 130}.png" for index in range(700)]
    touch(root, *(name.lstrip("/") for name in names))
    found = write_sorted(Walk(root), spool, run_length=run_length)
    assert found == 700
    assert paths(Listing(Folder(root), spool / "listing", found, 0)) == sorted(name.lstrip("/") for name in names)
    assert {entry.name for entry in spool.iterdir()} == {"listing"}


@pytest.mark.parametrize("block", range(1, 40))
def test_records_are_read_whole_wherever_a_block_ends(block: int) -> None:
    records = [(b"a/%d.png" % index, index * 37, 10**18 + index, b"") for index in range(20)]
    records += [(b"\xff\n.png", 0, -1, b""), (b"in@an/archive.png", 7, 10**18, b"512"), (b"b.png", 7, 0, b"1:2@3")]
    texts = [b"%b\0%d\0%d\0" % record[:3] for record in records[:-2]]
    texts += [b"in@an/archive.png\x007\x001000000000000000000@512\x00", b"b.png\x007\x000@1:2@3\x00"]
    data = io.BytesIO(b"".join(texts))
    reader = SimpleNamespace(read=lambda _: data.read(block))
    assert list(read_records(reader)) == records  # type: ignore[arg-type]


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
                discover(Folder(root), spool=spool)
            return
        found = list(discover(Folder(root), spool=spool))
        assert [os.fsencode(tile.path) for tile in found] == expected
        for tile in found:
            assert (root / tile.path).is_file()
