"""Lists of tiles, as people write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cervix_engine.errors import ListingError, TileReadError, UsageError
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.sources.mounts import Mounts
from cervix_engine.tiles.sources.open import open_source
from cervix_engine.tiles.sources.slides import WholeSlides
from cervix_engine.tiles.tile import TileStamp


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    for name in ("b/2.png", "a,b.png", "ü.png", "no suffix"):
        path = tmp_path / "study" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "other.png").write_bytes(b"other")
    return tmp_path / "study"


def found(tiles: Path, text: str | bytes, name: str = "list.csv") -> Listing:
    (tiles / name).write_bytes(text.encode() if isinstance(text, str) else text)
    spool = tiles / "spool"
    spool.mkdir(exist_ok=True)
    return discover(open_source(tiles / name), spool=spool)


def read(listing: Listing) -> dict[str, bytes]:
    reader = listing.source.reader()
    return {tile.path: bytes(reader.read(tile.path, tile.stamp)) for tile in listing}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "b/2.png\na,b.png\nü.png\nno suffix\n"),
        ("list.lst", "\ufeffb/2.png\r\n\r\na,b.png\r\nü.png\r\nno suffix"),
        ("list.csv", 'path\nb/2.png\n"a,b.png"\nü.png\nno suffix\n'),
        ("list.csv", 'slide_id,path,minx,miny\ns,b/2.png,0,0\ns,"a,b.png",1,2\ns,ü.png,3,4\nt,no suffix,5,6\n'),
        ("list.txt", 'label,path\n1,b/2.png\n1,"a,b.png"\n2,ü.png\n2,no suffix\n'),
        ("list.txt", '\n\nlabel,path\n1,b/2.png\n\n1,"a,b.png"\n2,ü.png\n2,no suffix\n'),
        ("list.csv", '\ufeff\r\n\r\npath\r\nb/2.png\r\n"a,b.png"\r\nü.png\r\nno suffix'),
        ("list.csv", 'path,slide_id\rb/2.png,1\r"a,b.png",1\rü.png,2\rno suffix,2\r'),
        ("list.txt", 'label,path\r1,b/2.png\r1,"a,b.png"\r2,ü.png\r2,no suffix'),
    ],
)
def test_what_is_listed_is_found_in_byte_order(tiles: Path, name: str, text: str) -> None:
    expected = {path: path.encode() for path in ("a,b.png", "b/2.png", "no suffix", "ü.png")}
    listing = found(tiles, text, name)
    assert read(listing) == expected
    assert (listing.ignored, listing.source.slide_name) == (0, "study")


def test_paths_may_lead_elsewhere(tiles: Path) -> None:
    outside = str(tiles.parent / "other.png")
    assert read(found(tiles, f"{outside}\n../other.png\n", "l.txt")) == {outside: b"other", "../other.png": b"other"}


def test_missing_tiles_are_failed_rows(tiles: Path) -> None:
    listing = found(tiles, "b/2.png\ngone.png\nb\n", "l.txt")
    reader, said = listing.source.reader(), {}
    for tile in listing:
        try:
            said[tile.path] = str(bytes(reader.read(tile.path, tile.stamp)))
        except TileReadError as error:
            said[tile.path] = str(error)
    assert said == {
        "b/2.png": "b'b/2.png'",
        "gone.png": "unreadable: No such file or directory",
        "b": "not_a_file: expected a regular file",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "a.png\nb.png\na.png\n", r"line 3: 'a\.png' is already in line 1"),
        ("l.csv", "path\nx.png\ny.png\nx.png\n", r"line 4: 'x\.png' is already in line 2"),
        ("l.csv", "file\nx.png\n", "line 1: no column path"),
        ("l.csv", "path,slied_id\nx.png,1\n", "unknown column 'slied_id'"),
        ("l.csv", "path,minx\nx.png,1\n", "minx without miny"),
        ("l.csv", "path,label\nx.png\n", "line 2: 1 of 2 cells"),
        ("l.csv", "path,label\n,1\n", "line 2: no path"),
        ("l.txt", "a\0b\n", "line 1: no file can have this name"),
        ("l.txt", "x" * 5000, "line 1: no file can have this name"),
        ("l.txt", "", "no tiles in"),
        ("l.txt", "a.png\rb.png\r", r"l\.txt: its lines end in CR alone, .*: save it .*, as `tr '\\r' '\\n'` does"),
        ("l.lst", "a.png\rb.png", "its lines end in CR alone"),
        ("l.csv", "path,path\na.png,b.png\n", "line 1: column 'path' twice"),
        ("l.txt", "path,path\na.png,b.png\n", "line 1: column 'path' twice"),
        ("l.csv", "path,slide_id,slide_id\na.png,b,c\n", "line 1: column 'slide_id' twice"),
        ("l.csv", "\n\nfile\nx.png\n", "line 3: no column path"),
        ("l.csv", "\npath,slied_id\nx.png,1\n", "line 2: unknown column 'slied_id'"),
        ("l.csv", "sep=,\npath\nx.png\n", "line 1: sep=, is for spreadsheets: delete this line"),
        ("l.csv", "path;slide_id\nx.png;1\n", "line 1: columns are separated by semicolons"),
        ("l.csv", "", "is empty: expected a header and rows"),
    ],
)
def test_what_is_no_list_is_refused_with_its_line(tiles: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        found(tiles, text, name)


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the list"):
        open_source(tmp_path / "none.csv").check()


def test_only_what_is_listed_is_found_again(tiles: Path) -> None:
    listing = found(tiles, "b/2.png\nü.png\n", "l.txt")
    names = [b"\xc3\xbc.png", b"../other.png", b"b/2.png"]
    again = list(listing.source.again(names, spool=tiles))
    assert [record[:2] for record in again] == [(names[0], 6), (names[1], 0), (names[2], 7)]


def test_a_share_that_is_unmounted_stops_the_run_and_a_missing_file_does_not(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    share = tmp_path / "my share"
    share.mkdir()
    root = "1 0 8:1 / / rw - ext4 /dev/a rw\n"
    table.write_text(root + f"2 1 0:44 / {str(share).replace(' ', chr(92) + '040')} rw - nfs server rw\n")
    mounts = Mounts(table)
    mounts.require(f"{share}/deep/gone.png")
    table.write_text(root)
    mounts.require(str(tmp_path / "gone.png"))
    with pytest.raises(ListingError, match="a file system that tiles lie on is gone"):
        mounts.require(f"{share}/deep/gone.png")


def test_a_listed_tile_that_changes_is_a_failed_row(tiles: Path) -> None:
    reader = found(tiles, "b/2.png\n", "l.txt").source.reader()
    with pytest.raises(TileReadError, match="changed"):
        reader.read("b/2.png", TileStamp(7, 1))
    assert os.fspath(tiles)


@pytest.mark.parametrize(
    ("name", "words"),
    [("l.csv", "a list"), ("l.TXT", "a list"), ("-", "a list"), ("a.tar", "an archive"), ("a.zip", "an archive")],
)
def test_what_holds_tiles_is_no_whole_slide(tmp_path: Path, name: str, words: str) -> None:
    named = tmp_path / name if name != "-" else name
    with pytest.raises(UsageError, match=f"{name} is {words} of tiles, and --whole-slides cuts a slide or all of a"):
        open_source(named, grid=GridRules())
    if name != "-":
        (tmp_path / name).mkdir()
        assert isinstance(open_source(named, grid=GridRules()), WholeSlides), "a folder may have any name"
