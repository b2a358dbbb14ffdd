"""Every tile is found, once, in byte order of its path, and nothing that is not a tile."""

from __future__ import annotations

import errno
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

from cervix_engine.errors import ListingError, UsageError
from cervix_engine.tiles.discover import discover, ignored_words
from cervix_engine.tiles.sources.folder import Folder, Walk

from .tile_folders import paths, touch

SUFFIXES = (b".jpg", b".jpeg", b".png", b".bmp", b".tif", b".tiff", b".webp", b".jp2", b".j2k")


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
            "1 other file (1 with another suffix); known suffixes are .jpg .jpeg .png .bmp .tif .tiff .webp .jp2 .j2k",
        ),
        ([".a.png", "b/.c.png"], "2 other files (2 hidden)"),
        (["@eaDir/a.png", "b/@eaDir/c.png", "#recycle/d.png"], "3 other files (3 system folders)"),
        (["a.svs", "b.NDPI"], "2 other files (2 whole slides); --whole-slides cuts whole slides into tiles"),
        (
            ["s.mrxs", "s/Data0000.dat", "s/Slidedat.ini"],
            "3 other files (2 with another suffix, 1 whole slide); known suffixes",
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
