"""Planted faults are found, on drawn pixels; on real tiles at the promised rates."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cervix_engine.preprocess import Pixels, decode
from cervix_engine.quality import quality_flags
from engine.report.tables import CONTRACT

Fault = Callable[[Pixels, np.random.Generator], Pixels]


def _blank(pixels: Pixels, random: np.random.Generator) -> Pixels:
    noise = random.normal(0, 2, pixels.shape)
    return np.asarray(np.clip(pixels.mean(axis=(0, 1)) + noise, 0, 255), np.uint8)


def _blurred(pixels: Pixels, random: np.random.Generator) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 3), np.uint8)


def _blue(pixels: Pixels, random: np.random.Generator) -> Pixels:
    return np.asarray(np.clip(pixels.astype(np.int16) + np.array([-100, 0, 100]), 0, 255), np.uint8)


FAULTS: dict[str, Fault] = {"blank": _blank, "blurred": _blurred, "blue_shift": _blue}


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


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_tiny_tiles_are_no_error(size: tuple[int, int]) -> None:
    quality_flags(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.data
def test_rates_on_real_tiles(data_root: Path, sipakmed_manifest: Path) -> None:
    with sipakmed_manifest.open(newline="", encoding="utf-8") as file:
        paths = [data_root / row["path"] for row in csv.DictReader(file)]
    tiles = (decode(path.read_bytes(), contract=CONTRACT) for path in paths)
    assert np.mean([bool(quality_flags(tile)) for tile in tiles]) <= 0.02
    sample = [decode(path.read_bytes(), contract=CONTRACT) for path in paths[::12]]
    random = np.random.default_rng(0)
    for name, fault in FAULTS.items():
        found = np.mean([name in quality_flags(fault(tile, random)) for tile in sample])
        assert found >= 0.95, name
