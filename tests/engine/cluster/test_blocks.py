"""Blocks: every missing batch in exactly one, each readable from its place in the listing alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.cluster.blocks import Block, BlockCutter
from cervix_engine.errors import OutputError
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stream import batches_of
from cervix_engine.tiles.listing import Listing, write_records
from cervix_engine.tiles.sources.folder import Folder


def listing_of(folder: Path, tiles: int) -> Listing:
    """Names of all lengths, some longer than what is read of a listing at a time."""
    names = (b"%09d%b.png" % (index, b"x" * (index * 7919 % 201)) for index in range(tiles))
    found = write_records(folder / "listing", ((name, 10, 1_700_000_000 + at, b"") for at, name in enumerate(names)))
    return Listing(Folder(folder), folder / "listing", found, 0)


def cutter_of(listing: Listing, batch_size: int, done: frozenset[int] = frozenset()) -> BlockCutter:
    count = -(-listing.found // batch_size)
    return BlockCutter(listing.path, own=range(count), done=done, batch_size=batch_size, last_tile=listing.found)


def all_blocks(cutter: BlockCutter, tiles: int) -> list[Block]:
    with cutter:
        return list(iter(lambda: cutter.cut(tiles), None))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    return listing_of(tmp_path_factory.mktemp("large"), 15_000)  # 1.8 MB


@settings(deadline=None, max_examples=30)
@given(batch_size=st.integers(1, 4000), tiles=st.integers(1, 12_000), data=st.data())
def test_blocks_hold_what_is_missing_and_nothing_else(
    large: Listing, batch_size: int, tiles: int, data: st.DataObject
) -> None:
    count = -(-large.found // batch_size)
    done = frozenset(data.draw(st.sets(st.integers(0, count - 1), max_size=20)))
    blocks = all_blocks(cutter_of(large, batch_size, done), tiles)
    numbers = [index for block in blocks for index in range(block.first_batch, block.first_batch + block.batches)]
    assert numbers == [index for index in range(count) if index not in done]
    assert all(block.batches <= max(1, tiles // batch_size) for block in blocks)
    block = data.draw(st.sampled_from(blocks)) if blocks else None
    if block is not None:
        ends = min(large.found, (block.first_batch + block.batches) * batch_size)
        assert (block.first_tile, block.tiles) == (block.first_batch * batch_size, ends - block.first_tile)


@pytest.mark.parametrize(("batch_size", "tiles"), [(7, 100), (256, 4096), (5000, 1)])
def test_a_block_reads_the_batches_of_the_listing(large: Listing, batch_size: int, tiles: int) -> None:
    read: list[TileBatch] = []
    for block in all_blocks(cutter_of(large, batch_size), tiles):
        read += block.read(large.path, batch_size)
    assert read == list(batches_of(large, batch_size))


def test_a_block_that_comes_back_is_handed_out_again(large: Listing) -> None:
    cutter = cutter_of(large, 100)
    first, second = cutter.cut(1000), cutter.cut(1000)
    assert first is not None
    assert second is not None
    assert second.first_batch == 10
    cutter.give_back(first)
    assert not cutter.exhausted
    assert cutter.cut(1000) == first
    rest = all_blocks(cutter, 1000)
    assert rest[0].first_batch == 20
    assert cutter.exhausted
    cutter.give_back(rest[-1])
    assert not cutter.exhausted


def test_a_listing_that_is_cut_off_is_named(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, 100)
    listing.path.write_bytes(listing.path.read_bytes()[:1000])
    cutter = cutter_of(listing, 10)
    with pytest.raises(OutputError, match="cannot read the listing"):
        all_blocks(cutter, 10)
