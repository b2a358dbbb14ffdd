"""Archives that are damaged, joined, or written against their format: nothing in them is lost without a word."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from cervix_engine.errors import ListingError, TileReadError, UsageError
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.sources.open import open_source
from engine.tiles.sources.packed import tar, zipped

END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
MEMBERS = {f"{number:02d}.png": b"%d" % number * 300 for number in range(24)}


def found(archive: Path, spool: Path) -> Listing:
    spool.mkdir(exist_ok=True)
    return discover(open_source(archive), spool=spool)


def names(archive: Path, spool: Path) -> list[str]:
    return list(found(archive, spool).paths())


def zip_of(path: Path, members: dict[str, bytes]) -> bytes:
    return zipped(path, members.items(), method=zipfile.ZIP_STORED).read_bytes()


def counted_as(data: bytes, entries: int) -> bytes:
    """An archive whose end says that it has so many members."""
    end = list(END.unpack(data[-END.size :]))
    end[3] = end[4] = entries
    return data[: -END.size] + END.pack(*end)


@pytest.mark.parametrize("entries", [10, 23, 25, 0])
def test_a_zip_whose_end_counts_other_than_its_directory_holds_is_refused(tmp_path: Path, entries: int) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(counted_as(zip_of(archive, MEMBERS), entries))
    with pytest.raises(ListingError, match=f"its directory holds 24 entries, and its end says {entries}: pack it anew"):
        names(archive, tmp_path / "spool")


def test_a_zip_of_more_members_than_16_bits_count_is_listed_whole(tmp_path: Path) -> None:
    """As by writers that know no zip64, which store the count without its upper bits."""
    data = zip_of(tmp_path / "a.zip", {"00000.png": b"1"})
    start = data.index(b"PK\x01\x02")
    before, after = data[start : -END.size].split(b"00000")
    many = [b"%05d" % number for number in range(2**16 + 7)]
    directory = b"".join([before + number + after for number in many])
    end = END.pack(b"PK\x05\x06", 0, 0, 7, 7, len(directory), start, 0)
    (tmp_path / "a.zip").write_bytes(data[:start] + directory + end)
    assert names(tmp_path / "a.zip", tmp_path / "spool") == [f"{number.decode()}.png" for number in many]


@pytest.mark.parametrize("more", [-46, -1, 1, 46])
def test_a_zip_whose_directory_is_not_as_long_as_its_end_says_is_refused(tmp_path: Path, more: int) -> None:
    data = zip_of(tmp_path / "a.zip", MEMBERS)
    end = list(END.unpack(data[-END.size :]))
    end[5] += more
    directory = data[: -END.size][: min(more, 0) or None] + b"\0" * max(more, 0)
    (tmp_path / "a.zip").write_bytes(directory + END.pack(*end))
    with pytest.raises(ListingError, match="its directory is broken"):
        names(tmp_path / "a.zip", tmp_path / "spool")


def test_a_zip_with_a_signed_directory(tmp_path: Path) -> None:
    data = zip_of(tmp_path / "a.zip", MEMBERS)
    end = list(END.unpack(data[-END.size :]))
    signature = struct.pack("<4sH", b"PK\x05\x05", 60) + b"s" * 60
    end[5] += len(signature)
    (tmp_path / "a.zip").write_bytes(data[: -END.size] + signature + END.pack(*end))
    assert names(tmp_path / "a.zip", tmp_path / "spool") == list(MEMBERS)


def zip64_of(data: bytes, *, disk: int = 0, entries: int = 24) -> bytes:
    *_, size, offset, _ = END.unpack(data[-END.size :])
    at = len(data) - END.size
    record = END64.pack(b"PK\x06\x06", END64.size - 12, 45, 45, disk, disk, entries, entries, size, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    return data[:at] + record + locator + END.pack(b"PK\x05\x06", *[2**16 - 1] * 4, *[2**32 - 1] * 2, 0)


def test_what_the_zip64_record_says_goes_before(tmp_path: Path) -> None:
    data = zip_of(tmp_path / "a.zip", MEMBERS)
    (tmp_path / "a.zip").write_bytes(zip64_of(data))
    assert names(tmp_path / "a.zip", tmp_path / "spool") == list(MEMBERS)
    (tmp_path / "a.zip").write_bytes(zip64_of(data, disk=1))
    with pytest.raises(ListingError, match="one of several volumes"):
        names(tmp_path / "a.zip", tmp_path / "spool")
    # It counts in full.
    (tmp_path / "a.zip").write_bytes(zip64_of(data, entries=2**16 + 24))
    with pytest.raises(ListingError, match="its directory holds 24 entries, and its end says 65,560: pack it anew"):
        names(tmp_path / "a.zip", tmp_path / "spool")


@pytest.mark.parametrize(
    "comment", [b"PK\x05\x06" + b"x" * 96, b"x" * 40 + b"PK\x05\x06" + b"x" * 7, b"PK\x05\x06" * 25]
)
def test_a_comment_of_a_zip_may_hold_what_its_end_begins_with(tmp_path: Path, comment: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.comment = comment
        archive.writestr("a.png", b"1")
    assert names(tmp_path / "a.zip", tmp_path / "spool") == ["a.png"]


def test_what_was_appended_to_a_zip(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of(tmp_path / "a.zip", MEMBERS) + b"appended" * 9)
    assert names(tmp_path / "a.zip", tmp_path / "spool") == list(MEMBERS)


@pytest.mark.parametrize("comment", [b"", b"of the first"])
def test_zips_that_were_joined_are_refused(tmp_path: Path, comment: bytes) -> None:
    first, second = (zip_of(tmp_path / "a.zip", {name: b"data"}) for name in ("a.png", "b.png"))
    first = first[:-2] + struct.pack("<H", len(comment)) + comment
    (tmp_path / "a.zip").write_bytes(first + second)
    with pytest.raises(ListingError, match="it is several archives, joined: name them apart, or pack them anew as one"):
        names(tmp_path / "a.zip", tmp_path / "spool")


@pytest.mark.parametrize("zeroed", [512, 8192])
def test_a_tar_with_zeros_in_its_middle_is_refused(tmp_path: Path, zeroed: int) -> None:
    archive = tar(tmp_path / "a.tar", MEMBERS.items())
    data = bytearray(archive.read_bytes())
    data[4096 : 4096 + zeroed] = bytes(zeroed)  # from the header of a member on: each takes two blocks
    archive.write_bytes(data)
    behind = next(at for at in range(4096, len(data)) if data[at])
    words = f"data follows the end of the archive, at byte {behind}: it is damaged, or several were joined; `tar "
    with pytest.raises(ListingError, match=words):
        names(archive, tmp_path / "spool")


def test_tars_that_were_joined_are_refused(tmp_path: Path) -> None:
    first, second = (tar(tmp_path / f"{name}.tar", [(f"{name}.png", b"1")]).read_bytes() for name in "ab")
    (tmp_path / "a.tar").write_bytes(first + second)
    with pytest.raises(ListingError, match=f"at byte {len(first)}: it is damaged, or several were joined"):
        names(tmp_path / "a.tar", tmp_path / "spool")


@pytest.mark.parametrize("padding", [0, 512, 3 * 2**20 + 100])
def test_a_tar_that_is_padded_with_zeros_is_whole(tmp_path: Path, padding: int) -> None:
    data = tar(tmp_path / "a.tar", MEMBERS.items()).read_bytes().rstrip(b"\0")
    (tmp_path / "a.tar").write_bytes(data + bytes(-len(data) % 512 + 512 + padding))
    assert names(tmp_path / "a.tar", tmp_path / "spool") == list(MEMBERS)
    with (tmp_path / "a.tar").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ListingError, match="data follows the end of the archive"):
        names(tmp_path / "a.tar", tmp_path / "spool")


def shards_in(folder: Path) -> Path:
    folder.mkdir()
    for number in range(2):
        tar(folder / f"s-{number}.tar", [(f"{number}.png", b"1")])
    return folder


@pytest.mark.parametrize("name", ["s-2.tar.gz", "s-2.TGZ", "s-2.tar.zst", "s-2.tar.lzma"])
def test_a_compressed_archive_beside_others_is_refused_as_alone(tmp_path: Path, name: str) -> None:
    shards = shards_in(tmp_path / "shards")
    (shards / name).write_bytes(b"x")
    for tiles in (shards, shards / name):
        with pytest.raises(UsageError, match=rf"{name} is compressed as a whole"):
            open_source(tiles)


def test_what_is_called_an_archive_and_is_no_file_is_refused(tmp_path: Path) -> None:
    shards = shards_in(tmp_path / "shards")
    for make in (lambda file: file.symlink_to("gone.tar"), lambda file: file.symlink_to(file.name), os.mkfifo):
        make(shards / "s-2.tar")
        with pytest.raises(UsageError, match=r"no such archive: .*s-2\.tar"):
            found(shards, tmp_path / "spool")
        (shards / "s-2.tar").unlink()
    (tmp_path / "elsewhere.tar").write_bytes((shards / "s-0.tar").read_bytes())
    (shards / "s-2.tar").symlink_to(tmp_path / "elsewhere.tar")
    assert names(shards, tmp_path / "spool") == ["s-0.tar/0.png", "s-1.tar/1.png", "s-2.tar/0.png"]


def test_what_lies_beside_archives_is_counted_as_everywhere(tmp_path: Path) -> None:
    shards = shards_in(tmp_path / "shards")
    for name in ("sizes.json", "README", "s-1.tar.gz.md5", ".s-0.tar", "._s-1.tar", "slide.svs"):
        (shards / name).write_bytes(b"x")
    for name in (".git", "@eaDir"):
        (shards / name).mkdir()
    listing = found(shards, tmp_path / "spool")
    assert list(listing.paths()) == ["s-0.tar/0.png", "s-1.tar/1.png"]
    assert listing.ignored_by == {"suffix": 3, "hidden": 3, "whole_slide": 1, "system_folder": 1}


@pytest.mark.parametrize("name", ["./", ".", "/", "././"])
def test_the_folder_that_was_packed_is_no_member(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for member, kind in ((name, tarfile.DIRTYPE), ("./a.png", tarfile.REGTYPE), ("./.git", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(member)
            info.type = kind
            archive.addfile(info)
    listing = found(tmp_path / "a.tar", tmp_path / "spool")
    assert list(listing.paths()) == ["a.png"]
    assert listing.ignored_by == {"hidden": 1}


def test_a_name_with_a_nul_is_a_failed_row_that_says_so(tmp_path: Path) -> None:
    """In a zip; the names of a tar end at their first NUL, but for those of its extended headers."""
    data = zip_of(tmp_path / "a.zip", {"a_b.png": b"1"}).replace(b"a_b.png", b"a\0b.png")
    (tmp_path / "a.zip").write_bytes(data)
    (tile,) = listing = found(tmp_path / "a.zip", tmp_path / "spool")
    assert tile.path == "a?b.png"
    with pytest.raises(TileReadError, match="unsafe_name: the name holds a NUL, which no file's name can"):
        listing.source.reader().read(tile.path, tile.stamp)
