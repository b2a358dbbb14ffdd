"""From pixels to the network's input: resized by the contract's rule, into the tile's own place in a slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from cervix_engine.contract import ModelContract
from cervix_engine.tiles.preprocess import preprocess, preprocess_into, resize_into
from cervix_engine.tiles.tile import TileSize

from .decoded_tiles import FILES
from .encoded_tiles import HEIGHT, PNG_RGB, WIDTH, draw, exif, jpeg, jpeg_with_segment, png
from .refused_tiles import PIXELS


def test_the_interpolation_follows_the_contract(contract: ModelContract) -> None:
    height, width = contract.input_size
    linear, area = cv2.INTER_LINEAR, cv2.INTER_AREA
    rules = {
        (height * 2, width * 3): area,
        (height + 1, width): area,
        (height, width + 1): area,
        (height // 2, width // 2): linear,
        (height - 1, width * 4): linear,  # one axis grows
        (height * 4, width - 1): linear,
        (1, 1): linear,
    }
    for size, interpolation in rules.items():
        pixels = draw(3, height=size[0], width=size[1])
        expected = cv2.resize(pixels, (width, height), interpolation=interpolation)
        actual = preprocess(png(pixels, PNG_RGB), contract=contract)
        np.testing.assert_array_equal(actual, expected, err_msg=str(size))
    noise = np.random.default_rng(0).integers(0, 256, (height * 2, width * 3, 3)).astype(np.uint8)
    by_area, by_line = (cv2.resize(noise, (width, height), interpolation=rule) for rule in (area, linear))
    assert (by_area != by_line).any(), "the two rules must be told apart by this test"
    np.testing.assert_array_equal(preprocess(png(noise, PNG_RGB), contract=contract), by_area)


def test_a_tile_of_the_right_size_is_copied(contract: ModelContract) -> None:
    height, width = contract.input_size
    pixels = draw(4, height=height, width=width)
    np.testing.assert_array_equal(preprocess(png(pixels, PNG_RGB), contract=contract), pixels)


def test_halving_by_area_is_the_mean_of_four_pixels(contract: ModelContract) -> None:
    height, width = contract.input_size
    pixels = (np.random.default_rng(1).integers(0, 64, (height * 2, width * 2, 3)) * 4).astype(np.uint8)
    mean = pixels.reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(preprocess(png(pixels, PNG_RGB), contract=contract), mean.astype(np.uint8))


def test_a_slot_gets_the_same_pixels_and_its_neighbours_nothing(contract: ModelContract) -> None:
    slot = np.full((4, *contract.input_size, 3), 77, np.uint8)
    for name, data in FILES.items():
        slot[:] = 77
        size = preprocess_into(slot[2], data, contract=contract)
        assert size == TileSize(HEIGHT, WIDTH)
        np.testing.assert_array_equal(slot[2], preprocess(data, contract=contract), err_msg=name)
        assert (slot[[0, 1, 3]] == 77).all()


def test_preprocessing_twice_gives_the_same_bytes(contract: ModelContract) -> None:
    for name, data in FILES.items():
        first = preprocess(data, contract=contract)
        assert first.flags.c_contiguous
        assert first.tobytes() == preprocess(data, contract=contract).tobytes(), name


def test_the_decoded_size_is_that_before_the_resize(contract: ModelContract) -> None:
    turned = jpeg_with_segment(jpeg(PIXELS), 0xE1, exif(6))
    out = np.empty((*contract.input_size, 3), np.uint8)
    assert preprocess_into(out, turned, contract=contract) == TileSize(HEIGHT, WIDTH)
    applied = replace(contract, exif_policy="apply")
    assert preprocess_into(out, turned, contract=applied) == TileSize(WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((24, 32, 3), np.float32),
        np.zeros((24, 32, 4), np.uint8),
        np.zeros((24, 32, 6), np.uint8)[..., ::2],
        np.zeros((24, 64, 3), np.uint8)[:, ::2],
    ],
)
def test_an_array_that_could_not_be_filled_in_place_is_a_mistake(out: Any) -> None:
    with pytest.raises(ValueError, match="contiguous uint8"):
        resize_into(out, PIXELS)
    assert (out == 0).all()
