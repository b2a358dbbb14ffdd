"""What is measured of a tile, and of which tiles."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from cervix_engine.drift.measures import ANSWER, PIXELS, is_measured, measure_answers, measure_image, step_of
from cervix_engine.values import Pixels
from engine.drift.watched import blurred
from engine.run.support import CONTRACT, drawn_tile


def measured(pixels: Pixels, *, height: int = 50, width: int = 80) -> dict[str, float]:
    values = measure_image(pixels, height=height, width=width)
    return dict(zip([measure.name for measure in PIXELS], values, strict=True))


def test_a_grey_tile_has_its_brightness_and_nothing_else() -> None:
    found = measured(np.full((32, 32, 3), 100, np.uint8))
    nothing = math.log(0.05) / 2
    assert found["brightness"] == pytest.approx(100, abs=0.5)
    assert (found["red_tint"], found["blue_tint"]) == pytest.approx((128, 128), abs=0.5)
    assert found["contrast"] == found["fine_detail"] == found["green_detail"] == pytest.approx(nothing)
    assert found["sharpness_2px"] == found["colour_sharpness"] == 0
    assert (found["height"], found["width"]) == pytest.approx((math.log(50), math.log(80)))


def test_tints_are_those_of_opencv() -> None:
    """Bundles of version 0.2 were measured by its own conversion."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found, means = measured(pixels), cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb))
    assert [found[name] for name in ("brightness", "red_tint", "blue_tint")] == pytest.approx(means[:3], abs=0.01)


def test_stripes_are_detail_at_their_width() -> None:
    """Of two pixels each: neighbours differ by 100 half of the time, pixels two apart always, four apart never."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, (np.arange(64) // 2) % 2 == 1] = 100
    found = measured(pixels)
    across_and_down = 0.5
    assert found["contrast"] == pytest.approx(math.log(50), abs=0.01)
    assert found["fine_detail"] == pytest.approx(math.log(100**2 * 0.5 * across_and_down) / 2, abs=0.02)
    assert found["sharpness_2px"] == pytest.approx(math.log(0.5) / 2, abs=0.02)
    assert found["sharpness_4px"] > 4


def test_a_colour_is_in_its_own_measures_alone() -> None:
    red, grey = np.full((32, 32, 3), 100, np.uint8), measured(np.full((32, 32, 3), 100, np.uint8))
    red[..., 0] += 40
    found = measured(red)
    assert found["red_tint"] > grey["red_tint"] + 15
    assert found["blue_tint"] < grey["blue_tint"]
    assert found["fine_detail"] == grey["fine_detail"]


@pytest.mark.parametrize(("channel", "name"), [(0, "red"), (1, "green"), (2, "blue")])
def test_detail_is_told_channel_by_channel(channel: int, name: str) -> None:
    """Stripes of two pixels in one channel, as above; of the others, nothing."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, (np.arange(64) // 2) % 2 == 1, channel] = 100
    found = measured(pixels)
    for other in ("red", "green", "blue"):
        expected = math.log(100**2 * 0.25) / 2 if other == name else math.log(0.05) / 2
        assert found[f"{other}_detail"] == pytest.approx(expected, abs=0.02)
        assert found[f"{other}_detail_4px"] == pytest.approx(math.log(0.05) / 2), "four apart are equal"


def test_a_tile_of_one_pixel_is_measured() -> None:
    assert np.isfinite(measure_image(np.full((1, 1, 3), 7, np.uint8), height=1, width=1)).all()


def test_blur_takes_sharpness() -> None:
    tile = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert measured(blurred(tile))["sharpness_4px"] < measured(tile)["sharpness_4px"] - 0.3


def test_answers_are_told_by_their_odds() -> None:
    even, sure = measure_answers(np.array([[0.5, 0.5, 0.0], [0.96, 0.02, 0.02]], np.float32))
    assert [measure.name for measure in ANSWER] == ["confidence", "runner_up"]
    assert even == pytest.approx([0, 0], abs=1e-4)
    assert sure == pytest.approx([math.log(24), math.log(0.5)], abs=1e-4)
    assert np.isfinite(measure_answers(np.array([[1.0, 0.0]], np.float32))).all()


@pytest.mark.parametrize(("found", "step"), [(1, 1), (767, 1), (768, 2), (20_000, 52), (24_576, 64), (10**7, 64)])
def test_few_tiles_are_all_measured_and_of_many_one_in_64(found: int, step: int) -> None:
    assert step_of(found) == step


def test_the_measured_tiles_are_told_by_their_path_and_spread_evenly() -> None:
    paths = [f"slide_{index % 7}/tile_{index}.png" for index in range(6400)]
    chosen = [path for path in paths if is_measured(path, 64)]
    assert 60 < len(chosen) < 140
    assert {path.split("/")[0] for path in chosen} == {f"slide_{number}" for number in range(7)}
    assert all(is_measured(path, 1) for path in paths)
    is_measured("not\udcffutf8.png", 64)


def test_the_drawn_tiles_differ() -> None:
    """Else the other tests here would show nothing."""
    assert drawn_tile(1) != drawn_tile(2)
    assert CONTRACT.input_size == (32, 32)
