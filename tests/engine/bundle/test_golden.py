"""Golden tiles prove that this machine sees the pixels that training saw, or stop it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.golden import INDEX, GoldenSet, write_golden
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, TileDecodeError
from cervix_engine.files import sha256_bytes
from cervix_engine.tiles.preprocess import preprocess
from engine.tiles.encoded_tiles import PNG_RGB, draw, jpeg, png

Validate = Callable[[str, Any], None]
Mutants = Callable[[Any], list[tuple[str, Any]]]

ENCODED = [jpeg(draw(0)), png(draw(1, height=24, width=32), PNG_RGB), jpeg(draw(2, height=20, width=90))]
LABELS = ["cervix_dyk", None, "cervix_sfi"]
ANSWERS = np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3], [1e-7, 0.5, 0.5]], np.float32)


@pytest.fixture
def root(tmp_path: Path, contract: ModelContract) -> Path:
    """A sealed bundle with three golden tiles."""
    contract.save(tmp_path / "contract.json")
    write_golden(tmp_path, ENCODED, labels=LABELS, probabilities=ANSWERS, contract=contract)
    seal(tmp_path)
    return tmp_path


def rewrite_index(root: Path, change: Callable[[dict[str, Any]], Any]) -> Bundle:
    """Change the index and seal the bundle again, as someone who wants to be believed would."""
    index = json.loads((root / INDEX).read_text())
    change(index)
    (root / INDEX).write_text(json.dumps(index))
    return seal(root)


def test_what_was_written_is_loaded(root: Path, contract: ModelContract) -> None:
    golden = GoldenSet.load(Bundle.open(root))
    assert [tile.label for tile in golden.tiles] == LABELS
    assert [golden.bundle.read(tile.file) for tile in golden.tiles] == ENCODED
    assert golden.probabilities().dtype == np.float32
    np.testing.assert_array_equal(golden.probabilities(), ANSWERS)  # to the last bit, through JSON
    for tile, data in zip(golden.tiles, ENCODED, strict=True):
        assert tile.pixels_sha256 == sha256_bytes(preprocess(data, contract=contract).data)


def test_replayed_pixels_are_the_preprocessed_ones(root: Path, contract: ModelContract) -> None:
    golden = GoldenSet.load(Bundle.open(root))
    expected = np.stack([preprocess(data, contract=contract) for data in ENCODED])
    np.testing.assert_array_equal(golden.pixels(), expected)
    np.testing.assert_array_equal(golden.pixels(2), expected[:2])
    assert golden.pixels(100).shape == (3, 24, 32, 3)


def test_its_index_fits_the_schema(root: Path, validate: Validate) -> None:
    validate("golden", json.loads((root / INDEX).read_text()))


def test_changes_of_its_index_are_refused(root: Path, validate: Validate, mutants: Mutants) -> None:
    changed = mutants(json.loads((root / INDEX).read_text()))
    assert len(changed) > 30
    for _, document in changed:
        with pytest.raises(jsonschema.ValidationError):
            validate("golden", document)


def test_a_tile_that_decodes_to_other_pixels_stops_the_replay(root: Path) -> None:
    golden = GoldenSet.load(Bundle.open(root))
    (root / golden.tiles[1].file).write_bytes(png(draw(9, height=24, width=32), PNG_RGB))
    with pytest.raises(ContractError, match=r"00001\.tile was altered"):
        golden.pixels()
    resealed = GoldenSet.load(seal(root))
    with pytest.raises(ContractError, match=r"00001\.tile decodes to other pixels"):
        resealed.pixels()
    assert resealed.pixels(1).shape[0] == 1


def test_one_pixel_that_is_off_by_one_is_seen(root: Path) -> None:
    pixels = draw(1, height=24, width=32)
    pixels[12, 16, 1] ^= 1
    (root / "golden/00001.tile").write_bytes(png(pixels, PNG_RGB))
    with pytest.raises(ContractError, match="other pixels"):
        GoldenSet.load(seal(root)).pixels()


def test_another_resize_is_seen(root: Path, contract: ModelContract) -> None:
    replace(contract, input_size=(32, 24)).save(root / "contract.json")
    with pytest.raises(ContractError, match="other pixels"):
        GoldenSet.load(seal(root)).pixels()


def test_a_tile_that_cannot_be_decoded_here_is_a_contract_error(root: Path) -> None:
    (root / "golden/00000.tile").write_bytes(ENCODED[0][:-40])
    with pytest.raises(ContractError, match=r"00000\.tile cannot be decoded on this machine: truncated"):
        GoldenSet.load(seal(root)).pixels()


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(tiles=[]),
        lambda index: index.update(tiles=None),
        lambda index: index.pop("tiles"),
        lambda index: index.update(tiles=["golden/00000.tile"]),
        lambda index: index["tiles"][0].pop("pixels_sha256"),
        lambda index: index["tiles"][2].update(probabilities=[0.5, 0.5]),
        lambda index: index["tiles"][2].update(probabilities=["a", "b", "c"]),
        lambda index: index["tiles"][2].update(probabilities=None),
        lambda index: index.update(schema="cervix/golden/2"),
    ],
)
def test_a_malformed_index_is_a_contract_error(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    bundle = rewrite_index(root, change)
    with pytest.raises(ContractError, match=INDEX):
        GoldenSet.load(bundle)


def test_a_tile_outside_the_bundle_is_not_read(root: Path) -> None:
    (root.parent / "outside.tile").write_bytes(ENCODED[0])
    golden = GoldenSet.load(rewrite_index(root, lambda index: index["tiles"][0].update(file="../outside.tile")))
    with pytest.raises(ContractError, match=r"no \.\./outside\.tile"):
        golden.pixels()


def test_a_bundle_without_golden_tiles_says_so(tmp_path: Path, contract: ModelContract) -> None:
    contract.save(tmp_path / "contract.json")
    with pytest.raises(ContractError, match=INDEX):
        GoldenSet.load(seal(tmp_path))


def test_writing_again_leaves_nothing_of_the_last_time(root: Path, contract: ModelContract) -> None:
    write_golden(root, ENCODED[:1], labels=LABELS[:1], probabilities=ANSWERS[:1], contract=contract)
    assert sorted(path.name for path in (root / "golden").iterdir()) == ["00000.tile", "golden.json"]
    assert GoldenSet.load(seal(root)).pixels().shape[0] == 1


def test_only_tiles_that_decode_become_golden(tmp_path: Path, contract: ModelContract) -> None:
    with pytest.raises(TileDecodeError):
        write_golden(tmp_path, [b"GIF89a"], labels=[None], probabilities=ANSWERS[:1], contract=contract)


def test_every_golden_tile_needs_an_answer_and_a_label(tmp_path: Path, contract: ModelContract) -> None:
    with pytest.raises(ValueError, match="shorter"):
        write_golden(tmp_path, ENCODED, labels=LABELS[:2], probabilities=ANSWERS, contract=contract)
