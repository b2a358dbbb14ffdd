"""A listing on disk is sorted, whole, and compared in bounded memory."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from cervix_engine.errors import OutputError
from cervix_engine.tiles.discover import compared, discover
from cervix_engine.tiles.listing import FolderChanges, Listing, read_records, write_sorted
from cervix_engine.tiles.sources.folder import Folder, Walk

from .tile_folders import paths, touch


def test_changes_of_a_folder_are_counted_by_name(root: Path, tmp_path: Path) -> None:
    touch(root, *(f"{folder}/{number}.png" for folder in "abc" for number in range(5)))
    (tmp_path / "stored").mkdir()
    listing = discover(Folder(root), spool=tmp_path / "stored")
    assert compared(listing, listing.paths, spool=tmp_path).changes == FolderChanges(0, 0)
    for name in ("a/0.png", "b/2.png", "b/3.png", "c/4.png"):
        (root / name).unlink()
    touch(root, "0.png", "b/25.png", "c/9.png", "b/1.txt")
    (root / "a/1.png").write_bytes(b"other bytes, which a tile's own stamp shows")
    assert compared(listing, listing.paths, spool=tmp_path).changes == FolderChanges(added=3, removed=4)
    for name in list(paths(listing)):
        (root / name).unlink(missing_ok=True)
    assert compared(listing, listing.paths, spool=tmp_path).changes == FolderChanges(added=3, removed=15)
    assert {entry.name for entry in tmp_path.iterdir()} == {"stored", "study"}


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
