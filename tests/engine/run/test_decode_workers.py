"""Decode workers may crash, hang or be killed: one row for the tile that did it, all others as ever, nothing left."""

from __future__ import annotations

from pathlib import Path

import pytest

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.run.stream.decode import DecodeLimits
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.stream import StreamSettings, batches_of, stream
from cervix_engine.tiles.tile import Outcome, TileFailure
from engine.run.planted_steps import PLANTED
from engine.run.support import CONTRACT, drawn_tile, plain_outcomes, refs

pytestmark = pytest.mark.timeout(300)

COUNT = 40
LIMITS = DecodeLimits(tile_seconds=0.5, worker_bytes=2**30)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Good tiles, and the order they are listed in."""
    root = tmp_path_factory.mktemp("planted")
    names = [f"{index:02d}.jpg" for index in range(COUNT)]
    for index, name in enumerate(names):
        (root / name).write_bytes(drawn_tile(index, ".jpg"))
    return root, names


def planted(root: Path, names: list[str], ends: dict[int, str]) -> list[str]:
    """The same tiles, some under a name that their decoder does not survive."""
    chosen = list(names)
    for index, end in ends.items():
        chosen[index] = f"{index:02d} {end}.jpg"
        (root / chosen[index]).write_bytes(drawn_tile(index, ".jpg"))
    return chosen


def outcomes_of(
    root: Path, names: list[str], *, workers: int | None = 2, batch_size: int = 16, limits: DecodeLimits = LIMITS
) -> list[Outcome]:
    settings = StreamSettings(root, CONTRACT, batch_size, workers, limits=limits)
    tiles = batches_of(refs(names), batch_size)
    results = stream(tiles, backend=FakeBackend(), settings=settings, stats=StreamStats(), source=PLANTED)
    return [outcome for result in results for outcome in result.outcomes]


REASONS = {
    "segfault": "decoder_crashed: its process ended with SIGSEGV",
    "abort": "decoder_crashed: its process ended with SIGABRT",
    "leave": "decoder_crashed: its process ended with exit code 0",
    "hang": "decoder_hung: not decoded within 0.5 s",
    "spin": "decoder_hung: not decoded within 0.5 s",
    "allocate": "decoder_crashed: out of memory, the limit is 1024 MB",
}


@pytest.mark.parametrize("end", REASONS)
@pytest.mark.parametrize("workers", [1, 3, None])
def test_a_tile_that_ends_its_decoder_is_one_row(names: tuple[Path, list[str]], end: str, workers: int | None) -> None:
    root, good = names
    expected = plain_outcomes(root, refs(good), FakeBackend(), 16)
    expected[21] = TileFailure("decode", REASONS[end])
    outcomes = outcomes_of(root, planted(root, good, {21: end}), workers=workers)
    # But for the fake model, whose answers of one batch do not depend on each other, all is as without that tile.
    assert outcomes == expected


def test_several_of_a_chunk_and_of_all_kinds(names: tuple[Path, list[str]]) -> None:
    root, good = names
    expected = plain_outcomes(root, refs(good), FakeBackend(), 16)
    ends = dict(zip((0, 1, 7, 8, 22, 39), REASONS, strict=True))
    for index, end in ends.items():
        expected[index] = TileFailure("decode", REASONS[end])
    assert outcomes_of(root, planted(root, good, ends)) == expected
