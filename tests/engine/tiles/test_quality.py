"""Planted faults are found, on drawn pixels; on real tiles at the promised rates."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cervix_engine.contract import TileStatistic
from cervix_engine.tiles.preprocess import decode
from cervix_engine.tiles.quality import quality_flags
from cervix_engine.values import Pixels
from engine.table.tables import CONTRACT

NAMES = ("mean_red", "mean_green", "mean_blue", "height_px", "width_px")

Fault = Callable[[Pixels, np.random.Generator], Pixels]


def _blank(pixels: Pixels, random: np.random.Generator) -> Pixels:
    noise = random.normal(0, 2, pixels.shape)
    return np.asarray(np.clip(pixels.mean(axis=(0, 1)) + noise, 0, 255), np.uint8)


def _blurred(pixels: Pixels, random: np.random.Generator) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 3), np.uint8)


def _blue(pixels: Pixels, random: np.random.Generator) -> Pixels:
    return np.asarray(np.clip(pixels.astype(np.int16) + np.array([-100, 0, 100]), 0, 255), np.uint8)


def _dark(pixels: Pixels, random: np.random.Generator) -> Pixels:
    return np.asarray(pixels * 0.2, np.uint8)


def _bright(pixels: Pixels, random: np.random.Generator) -> Pixels:
    return np.asarray(255 - (255 - pixels) * 0.15, np.uint8)


FAULTS: dict[str, Fault] = {"blank": _blank, "blurred": _blurred, "blue_shift": _blue, "dark": _dark, "bright": _bright}


def _drawn() -> Pixels:
    """A cell with sharp edges, a nucleus and grain, on a pale ground."""
    random = np.random.default_rng(3)
    pixels = np.full((160, 180, 3), (225, 215, 220), np.uint8)
    cv2.circle(pixels, (90, 80), 60, (190, 120, 170), -1)
    cv2.circle(pixels, (95, 75), 18, (90, 50, 110), -1)
    return np.asarray(np.clip(pixels + random.normal(0, 6, pixels.shape), 0, 255), np.uint8)


def test_a_sharp_cell_has_no_flag() -> None:
    assert quality_flags(_drawn()) == ()


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_flag(name: str) -> None:
    assert quality_flags(FAULTS[name](_drawn(), np.random.default_rng(1))) == (name,)


STATISTICS = (TileStatistic("mean_red", 150, 190, 220), TileStatistic("height_px", 100, 160, 200))


def test_a_tile_is_strange_far_outside_of_the_training_tiles_only() -> None:
    assert quality_flags(_drawn(), STATISTICS) == ()
    red = _drawn()
    red[..., 0] = np.maximum(red[..., 0], 245)
    assert quality_flags(red, STATISTICS) == ("off_colour",)
    assert quality_flags(red) == ()
    assert quality_flags(_drawn()[:90], STATISTICS) == ()
    assert quality_flags(_drawn()[:70], STATISTICS) == ("off_size",)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_tiny_tiles_are_no_error(size: tuple[int, int]) -> None:
    flags = quality_flags(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8), STATISTICS)
    assert set(flags) <= {*FAULTS, "off_colour", "off_size"}


@pytest.mark.slow
@pytest.mark.data
def test_rates_on_real_tiles(data_root: Path, sipakmed_manifest: Path) -> None:
    with sipakmed_manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tiles = [decode((data_root / row["path"]).read_bytes(), contract=CONTRACT) for row in rows]
    measures = [
        (*tile.mean(axis=(0, 1)), *tile.shape[:2])
        for tile, row in zip(tiles, rows, strict=True)
        if row["split"] == "train"
    ]
    statistics = [
        TileStatistic(name, *np.percentile(values, (0.5, 50, 99.5)).tolist())
        for name, values in zip(NAMES, np.array(measures).T, strict=True)
    ]
    assert np.mean([bool(quality_flags(tile, statistics)) for tile in tiles]) <= 0.02
    random = np.random.default_rng(0)
    for name, fault in FAULTS.items():
        # Of little contrast, what is too dark or too bright is blank.
        accepted = {name, "blank"} if name in ("dark", "bright") else {name}
        found = [bool(accepted & set(quality_flags(fault(tile, random), statistics))) for tile in tiles[::12]]
        assert np.mean(found) >= 0.95, name
