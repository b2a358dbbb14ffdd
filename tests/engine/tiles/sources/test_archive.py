"""What archives of tiles hold: every member is a tile, a failed row, counted, or a refusal."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cervix_engine.errors import ListingError, TileReadError, UsageError
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.preprocess import MAX_TILE_BYTES
from cervix_engine.tiles.sources.archive import Archives
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.sources.open import open_source
from engine.tiles.sources.packed import tar, zipped

MEMBERS = {"b/2.png": b"two" * 400, "a.jpg": b"one", "b/1.JPEG": b"", "b/ü\n.tif": b"\0" * 9000}
BESIDE = {"a.cls": b"3", "a.json": b"{}", ".hidden.png": b"x", "@eaDir/a.jpg": b"x", "@eaDir/b.jpg": b"x"}

Pack = Callable[..., Path]
FORMATS = pytest.mark.parametrize(("suffix", "pack"), [(".tar", tar), (".zip", zipped)])


def found(archive: Path, spool: Path) -> Listing:
    spool.mkdir(exist_ok=True)
    return discover(open_source(archive), spool=spool)


def read(listing: Listing) -> dict[str, bytes | str]:
    """Each tile's bytes, or why it has none, by a reader as a worker has it."""
    reader = pickle.loads(pickle.dumps(listing.source.reader()))
    answers: dict[str, bytes | str] = {}
    for tile in listing:
        try:
            answers[tile.path] = reader.read(tile.path, tile.stamp)
        except TileReadError as error:
            answers[tile.path] = str(error)
    return answers


@FORMATS
def test_members_are_found_and_read_in_place(tmp_path: Path, suffix: str, pack: Pack) -> None:
    archive = pack(tmp_path / f"study{suffix}", [*MEMBERS.items(), *BESIDE.items()])
    listing = found(archive, tmp_path / "spool")
    assert list(listing.paths()) == sorted(MEMBERS, key=os.fsencode)
    assert listing.ignored_by == {"suffix": 2, "hidden": 1, "system_folder": 1}
    assert read(listing) == MEMBERS
    assert listing.source.slide_name == "study"


@FORMATS
def test_names_are_as_they_would_be_unpacked(tmp_path: Path, suffix: str, pack: Pack) -> None:
    archive = pack(tmp_path / f"a{suffix}", [("./a/1.png", b"1"), ("/b/2.png", b"2"), ("c//./3.png", b"3")])
    assert read(found(archive, tmp_path / "spool")) == {"a/1.png": b"1", "b/2.png": b"2", "c/3.png": b"3"}


@FORMATS
def test_a_name_that_leads_out_is_a_failed_row_and_opens_nothing(tmp_path: Path, suffix: str, pack: Pack) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    names = ["../secret.png", "a/../../secret.png", "a/b.png", "c..png"]
    answers = read(found(pack(tmp_path / f"a{suffix}", [(name, b"own") for name in names]), tmp_path / "spool"))
    refused = "unsafe_name: the name leads out of the archive"
    assert answers == {names[0]: refused, names[1]: refused, names[2]: b"own", names[3]: b"own"}


@FORMATS
@pytest.mark.parametrize("again", ["a.png", "./a.png", "/a.png"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path: Path, suffix: str, pack: Pack, again: str) -> None:
    archive = pack(tmp_path / f"a{suffix}", [("a.png", b"1"), ("b.png", b"2"), (again, b"3")])
    with pytest.raises(UsageError, match="two tiles have one path"):
        found(archive, tmp_path / "spool")


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_an_archive_that_is_cut_anywhere_is_refused_or_all_of_it_is_there(tmp_path: Path, suffix: str) -> None:
    pack = tar if suffix == ".tar" else zipped
    whole = pack(tmp_path / f"whole{suffix}", MEMBERS.items()).read_bytes()
    cut, refusals = tmp_path / f"cut{suffix}", []
    for length in [*range(0, len(whole), 97), *range(len(whole) - 40, len(whole))]:
        cut.write_bytes(whole[:length])
        try:
            answers = read(found(cut, tmp_path / "spool"))
        except ListingError as error:
            refusals.append(str(error))
        else:
            assert answers == MEMBERS, length
    assert len(refusals) > 20
    assert all(error.startswith(f"{cut} cannot be listed in full: ") for error in refusals)


@FORMATS
def test_no_byte_of_an_archive_that_is_flipped_is_taken_for_another_tile(
    tmp_path: Path, suffix: str, pack: Pack
) -> None:
    """A tar has a checksum of its headers, a zip one of its members too; what none covers is the tile's own affair."""
    whole = pack(tmp_path / f"whole{suffix}", MEMBERS.items()).read_bytes()
    broken = tmp_path / f"broken{suffix}"
    step = max(1, len(whole) // 120)
    for at in range(0, len(whole), step):
        broken.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            answers = read(found(broken, tmp_path / "spool"))
        except (ListingError, UsageError):
            continue
        # None is missing: one may have another name, or be refused.
        assert len(answers) == len(MEMBERS) or found(broken, tmp_path / "spool").ignored
        if suffix == ".zip":
            assert {data for data in answers.values() if isinstance(data, bytes)} <= set(MEMBERS.values())


def test_an_archive_cut_while_it_is_read_gives_failed_rows(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar", [("a.png", b"1" * 600), ("b.png", b"2" * 600)])
    listing = found(archive, tmp_path / "spool")
    stamp = archive.stat()
    os.truncate(archive, 2000)
    os.utime(archive, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert read(listing) == {"a.png": b"1" * 600, "b.png": "unreadable: the archive ends within this member"}


@FORMATS
def test_an_archive_that_changed_or_is_gone_stops_the_run(tmp_path: Path, suffix: str, pack: Pack) -> None:
    archive = pack(tmp_path / f"a{suffix}", [("a.png", b"1")])
    listing = found(archive, tmp_path / "spool")
    pack(archive, [("b.png", b"another"), ("a.png", b"1")])
    os.utime(archive, ns=(1, 1))
    with pytest.raises(ListingError, match="has changed since it was listed: begin anew with --no-resume"):
        read(listing)
    archive.unlink()
    with pytest.raises(ListingError, match="is gone"):
        read(listing)


def test_a_bomb_is_a_failed_row_and_is_never_inflated(tmp_path: Path) -> None:
    bomb, lying = b"\0" * (MAX_TILE_BYTES + 1), b"\0" * 5_000_000
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("bomb.png", bomb)
        archive.writestr("lying.png", lying)
        archive.writestr("good.png", b"good")
    data = (tmp_path / "a.zip").read_bytes()
    # The directory says that it is small.
    at = data.index(b"PK\x01\x02", data.index(b"lying.png", data.index(b"PK\x01\x02")) - 60)
    (tmp_path / "a.zip").write_bytes(data[: at + 24] + struct.pack("<L", 1000) + data[at + 28 :])
    assert read(found(tmp_path / "a.zip", tmp_path / "spool")) == {
        "bomb.png": f"too_large: {MAX_TILE_BYTES + 1} bytes, limit {MAX_TILE_BYTES}",
        "lying.png": "too_large: decompresses to more than the 1000 bytes that the archive says",
        "good.png": b"good",
    }


def test_members_that_are_not_read_in_place_are_failed_rows(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", [("a.png", b"1" * 99)], method=zipfile.ZIP_BZIP2)
    (why,) = read(found(tmp_path / "a.zip", tmp_path / "spool")).values()
    assert why == "unreadable: compressed by method 12, expected stored or deflated: pack it anew"
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.png", b"1" * 99)
    data = bytearray((tmp_path / "b.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(data)
    (why,) = read(found(tmp_path / "b.zip", tmp_path / "spool")).values()
    assert why == "unreadable: an encrypted member: pack the archive without a password"


def test_zip64_and_what_lies_before_the_archive(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("a.png", "w", force_zip64=True) as member:
        member.write(b"data")
    many = {f"{number:05d}.png": b"" for number in range(65_540)}  # more than 16 bits can count
    zipped(tmp_path / "many.zip", many.items(), method=zipfile.ZIP_STORED)
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" * 7 + buffer.getvalue())
    assert read(found(tmp_path / "a.zip", tmp_path / "spool")) == {"a.png": b"data"}
    assert list(found(tmp_path / "many.zip", tmp_path / "spool").paths()) == list(many)


def test_what_a_tar_of_another_kind_holds(tmp_path: Path) -> None:
    long = "deep/" * 40 + "tile.png"
    with tarfile.open(tmp_path / "gnu.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in [("to", tarfile.DIRTYPE), ("pipe.png", tarfile.FIFOTYPE), (".git", tarfile.DIRTYPE)]:
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
        for name, link in [("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = link, long
            archive.addfile(info)
        for name in (long, os.fsdecode(b"latin-\xe9.png")):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"data"))
    listing = found(tmp_path / "gnu.tar", tmp_path / "spool")
    assert read(listing) == {long: b"data", os.fsdecode(b"latin-\xe9.png"): b"data"}
    assert listing.ignored_by == {"special": 1, "link": 2, "hidden": 1}


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(zlib.compress(b"x" * 5000))
    (tmp_path / "a.zip").write_bytes(b"x" * 5000)
    (tmp_path / "empty.tar").write_bytes(b"")
    for name in ("a.tar", "a.zip", "empty.tar"):
        with pytest.raises(ListingError, match="cannot be listed in full"):
            found(tmp_path / name, tmp_path / "spool")
    with pytest.raises(UsageError, match="no such archive"):
        found(tmp_path / "none.tar", tmp_path / "spool")
    for name in ("a.tar.gz", "a.tgz", "a.tar.zst"):
        with pytest.raises(UsageError, match="compressed as a whole"):
            open_source(tmp_path / name)
    tar(tmp_path / "none.tar", [("a.txt", b"")])
    with pytest.raises(UsageError, match=r"no tiles in .*none\.tar: 1 other file \(1 with another suffix\)"):
        found(tmp_path / "none.tar", tmp_path / "spool")


def test_webdataset_shards(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(3):
        tar(shards / f"train-{number:06d}.tar", [(f"k{number}.jpg", b"%d" % number), (f"k{number}.cls", b"1")])
    (shards / "sizes.json").write_text("{}", encoding="utf-8")
    expected = {f"train-{number:06d}.tar/k{number}.jpg": b"%d" % number for number in range(3)}
    for name in (shards, shards / "train-{000000..000002}.tar"):
        listing = found(name, tmp_path / "spool")
        assert isinstance(listing.source, Archives)
        assert read(listing) == expected
        assert listing.ignored_by == {"suffix": 4 if name == shards else 3}, "what lies beside them counts too"
    assert list(read(found(shards / "train-{000001..000001}.tar", tmp_path / "spool"))) == ["train-000001.tar/k1.jpg"]
    with pytest.raises(UsageError, match=r"no such archive: .*train-000003\.tar"):
        found(shards / "train-{000001..000003}.tar", tmp_path / "spool")
    with pytest.raises(UsageError, match="counts down"):
        open_source(shards / "train-{3..1}.tar")
    (shards / "a.png").write_bytes(b"")
    assert isinstance(open_source(shards), Folder), "what holds a tile is a folder of tiles"


@FORMATS
def test_tiles_are_found_again_in_any_order(tmp_path: Path, suffix: str, pack: Pack) -> None:
    archive = pack(tmp_path / f"a{suffix}", MEMBERS.items())
    listing = found(archive, tmp_path / "spool")
    stored = {record[0]: record for record in listing.records()}
    names = [b"b/2.png", b"gone.png", b"a.jpg", b"a.jpg", b"b/1.JPEG"]
    again = list(listing.source.again(names, spool=tmp_path / "spool"))
    assert again == [stored.get(name, (name, 0, 0, b"")) for name in names]
    assert {entry.name for entry in (tmp_path / "spool").iterdir()} == {"listing"}


@FORMATS
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, suffix: str, pack: Pack) -> None:
    archive = pack(tmp_path / f"a{suffix}", [("d/" * 3000 + "a.png", b"1")])
    with pytest.raises(ListingError, match="a member's name has 6005 bytes, and no file's can have so many"):
        found(archive, tmp_path / "spool")


@pytest.mark.parametrize("size", [2**32, -(2**20)])
def test_a_header_that_would_fill_the_memory_or_go_backwards_is_refused(tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo("a.png")
    info.type = tarfile.XHDTYPE if size > 0 else tarfile.REGTYPE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (b"\x80" if size > 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    (tmp_path / "a.tar").write_bytes(bytes(header))
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(2**33)  # a hole: that much can be read, and would be
    with pytest.raises(ListingError, match=f"a header of {size} bytes"):
        found(tmp_path / "a.tar", tmp_path / "spool")


def test_an_offset_beyond_all_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"1")
    data = (tmp_path / "a.zip").read_bytes()
    at = data.index(b"PK\x01\x02")
    entry = bytearray(data[at : data.index(b"PK\x05\x06")])
    entry[42:46], entry[30:32] = b"\xff" * 4, struct.pack("<H", 12)
    entry += struct.pack("<2HQ", 1, 8, 2**64 - 1)
    end = bytearray(data[data.index(b"PK\x05\x06") :])
    end[12:16] = struct.pack("<L", len(entry))
    (tmp_path / "a.zip").write_bytes(data[:at] + entry + end)
    with pytest.raises(ListingError, match="its directory is broken"):
        found(tmp_path / "a.zip", tmp_path / "spool")
