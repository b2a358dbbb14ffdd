"""Scaled decoding is the contract's choice: large JPEGs only, libjpeg's own halving, and every refusal as before."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, TileError
from cervix_engine.tiles.preprocess import decode, preprocess, preprocess_into, resize_into
from cervix_engine.tiles.tile import TileSize

from .encoded_tiles import PNG_RGB, draw, exif, jpeg, jpeg_progressive, jpeg_with_segment, png

SIDE = 32
REDUCED = {1: cv2.IMREAD_COLOR_BGR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}


@pytest.fixture
def scaled(contract: ModelContract) -> ModelContract:
    return replace(contract, input_size=(SIDE, SIDE), scaled_decoding=True)


def opencv(data: bytes, divisor: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """OpenCV's own reduced decoding, resized as every tile is."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), REDUCED[divisor] | cv2.IMREAD_IGNORE_ORIENTATION)
    assert pixels is not None
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    resize_into(out, np.ascontiguousarray(pixels[..., ::-1]))
    return out


@pytest.mark.parametrize(
    ("height", "width", "divisor"),
    [
        (SIDE, SIDE, 1),
        (2 * SIDE - 1, 9 * SIDE, 1),
        (2 * SIDE, 2 * SIDE, 2),
        (9 * SIDE, 4 * SIDE - 1, 2),
        (4 * SIDE, 4 * SIDE, 4),
        (4 * SIDE + 3, 7 * SIDE + 1, 4),
        (40 * SIDE, 20 * SIDE, 4),
    ],
)
@pytest.mark.parametrize("kind", [jpeg, jpeg_progressive])
def test_both_axes_stay_at_least_as_large_as_the_input(
    kind: object, height: int, width: int, divisor: int, scaled: ModelContract
) -> None:
    data = kind(draw(5, height=height, width=width))  # type: ignore[operator]
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    assert preprocess_into(out, data, contract=scaled) == TileSize(height, width)
    np.testing.assert_array_equal(out, opencv(data, divisor))


def test_it_gives_other_pixels_and_only_where_the_contract_says_so(scaled: ModelContract) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8 * SIDE, 8 * SIDE, 3), np.uint8)
    data = jpeg(noise)
    whole = preprocess(data, contract=replace(scaled, scaled_decoding=False))
    np.testing.assert_array_equal(whole, opencv(data, 1))
    assert (preprocess(data, contract=scaled) != whole).any()


def test_other_formats_and_turned_pixels_are_decoded_whole(scaled: ModelContract) -> None:
    pixels = draw(6, height=8 * SIDE, width=5 * SIDE)
    whole = replace(scaled, scaled_decoding=False)
    turned = jpeg_with_segment(jpeg(pixels), 0xE1, exif(6))
    for data, policy in ((png(pixels, PNG_RGB), "ignore"), (turned, "apply")):
        given = preprocess(data, contract=replace(scaled, exif_policy=policy))  # type: ignore[arg-type]
        np.testing.assert_array_equal(given, preprocess(data, contract=replace(whole, exif_policy=policy)))  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [2 * SIDE, 4 * SIDE, 6 * SIDE + 5])
@pytest.mark.parametrize("kind", [jpeg, jpeg_progressive])
def test_a_short_scan_is_refused_as_at_full_size(kind: object, side: int, scaled: ModelContract) -> None:
    data = kind(draw(7, height=side, width=side))  # type: ignore[operator]
    first, last = data.index(b"\xff\xda"), data.rindex(b"\xff\xda")
    # One scan's end, or whole scans: what a progressive file's last one refines is too little to be seen.
    cuts = range(last + 14, last + (len(data) - last) * 3 // 4, 5) if first == last else range(first, last, 7)
    whole = replace(scaled, scaled_decoding=False)
    for cut in cuts:
        short = data[:cut] + b"\xff\xd9"
        with pytest.raises(TileError) as at_full_size:
            preprocess(short, contract=whole)
        with pytest.raises(TileError) as scaled_down:
            preprocess(short, contract=scaled)
        assert scaled_down.value.kind == at_full_size.value.kind


@pytest.mark.parametrize("value", [0, 127, 128, 255])
def test_a_plain_tile_is_no_short_scan(value: int, scaled: ModelContract) -> None:
    for side in (2 * SIDE, 4 * SIDE + 1):
        data = jpeg(np.full((side, side, 3), value, np.uint8))
        np.testing.assert_array_equal(preprocess(data, contract=scaled), np.full((SIDE, SIDE, 3), value))


def test_what_looks_at_a_tile_sees_it_at_its_own_size(scaled: ModelContract) -> None:
    """Its size and sharpness are compared with those of training tiles, which were measured so."""
    data = jpeg(draw(8, height=5 * SIDE, width=4 * SIDE))
    seen: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    preprocess_into(out, data, contract=scaled, look=seen.append)
    np.testing.assert_array_equal(seen[0], decode(data, contract=scaled))
    assert seen[0].shape == (5 * SIDE, 4 * SIDE, 3)
    np.testing.assert_array_equal(out, opencv(data, 4))


# The contract


def test_the_contract_names_it_only_where_it_is_chosen(contract: ModelContract) -> None:
    """So a program that does not know it refuses the contract, instead of decoding in full."""
    plain = contract.to_json()
    assert "scaled_decoding" not in plain
    chosen = replace(contract, scaled_decoding=True)
    assert chosen.to_json() == {**plain, "scaled_decoding": True}
    for item in (contract, chosen):
        assert ModelContract.from_json(item.to_json()) == item


def test_the_choice_is_true_or_false(contract: ModelContract) -> None:
    with pytest.raises(ContractError, match="scaled_decoding 2: expected true or false"):
        ModelContract.from_json({**contract.to_json(), "scaled_decoding": 2})
