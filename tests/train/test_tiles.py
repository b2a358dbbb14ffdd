from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cervix_engine.contract import ModelContract
from cervix_engine.files import sha256_bytes
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.tiles.tile import TileFailure
from cervix_train.data.tiles import TileBatch, tile_batches
from engine.tiles.broken_tiles import BROKEN


@pytest.fixture
def paths(drawn: Path) -> list[Path]:
    return sorted(drawn.rglob("*.png"))[:7]


def batches(paths: list[Path], contract: ModelContract, failures: dict[int, TileFailure]) -> Iterator[TileBatch]:
    return tile_batches(paths, contract=contract, batch_size=3, failures=failures)


def test_batches_hold_exactly_what_preprocess_gives(paths: list[Path], contract: ModelContract) -> None:
    failures: dict[int, TileFailure] = {}
    got = list(batches(paths, contract, failures))
    assert [batch.indices for batch in got] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [len(batch) for batch in got] == [3, 3, 1]
    assert {batch.pixels.shape for batch in got} == {(3, *contract.input_size, 3)}
    assert not got[2].pixels[1:].any()
    assert failures == {}
    digests = [sha256_bytes(tile.tobytes()) for batch in got for tile in batch.pixels[: len(batch)]]
    assert digests == [sha256_bytes(preprocess(path.read_bytes(), contract=contract).tobytes()) for path in paths]
    assert [digest for batch in got for digest in batch.digests] == [sha256_bytes(path.read_bytes()) for path in paths]


def test_a_broken_tile_fails_alone(paths: list[Path], contract: ModelContract, tmp_path: Path) -> None:
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(paths[0].read_bytes()[:500])
    given = [paths[0], broken, paths[1], missing, paths[2]]
    failures: dict[int, TileFailure] = {}
    got = list(batches(given, contract, failures))
    assert [batch.indices for batch in got] == [[0, 2, 4]]
    whole = np.stack([preprocess(path.read_bytes(), contract=contract) for path in paths[:3]])
    assert np.array_equal(got[0].pixels, whole)
    assert {index: (failure.stage, failure.kind) for index, failure in failures.items()} == {
        1: ("decode", "truncated"),
        3: ("read", "unreadable"),
    }


def test_training_reads_no_pixel_that_no_decoder_gave(contract: ModelContract, tmp_path: Path) -> None:
    wanted = {name: (data, kind) for name, (data, kind) in BROKEN.items() if name.startswith(("tiff", "jpeg"))}
    given = [tmp_path / str(number) for number in range(len(wanted))]
    for path, (data, _) in zip(given, wanted.values(), strict=True):
        path.write_bytes(data)
    failures: dict[int, TileFailure] = {}
    assert list(batches(given, contract, failures)) == []
    assert [failures[index].kind for index in range(len(given))] == [kind for _, kind in wanted.values()]


def test_skipped_tiles_are_not_decoded(paths: list[Path], contract: ModelContract, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    failures: dict[int, TileFailure] = {}
    known = sha256_bytes(b"no image")
    got = list(
        tile_batches(
            [broken, paths[0]],
            contract=contract,
            batch_size=3,
            failures=failures,
            skip=lambda _, digest: digest == known,
        )
    )
    assert [batch.indices for batch in got] == [[1]]
    assert failures == {}


def test_nothing_readable_gives_no_batch(contract: ModelContract, tmp_path: Path) -> None:
    failures: dict[int, TileFailure] = {}
    assert list(batches([tmp_path / "none.png"], contract, failures)) == []
    assert list(failures) == [0]
