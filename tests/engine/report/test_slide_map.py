"""A map is free where no tile lies, and nowhere else; failed tiles lie where their names say."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from cervix_engine.report.findings import gather
from cervix_engine.report.slide_map import FAILED_BGR, MAX_CELLS, SlideMap, SlidePoints, draw_map
from cervix_engine.table.coordinates import Locator
from cervix_engine.table.reader import Box, Table
from engine.table.tables import Tile, WriteTable


def picture(found: SlideMap) -> npt.NDArray[np.uint8]:
    """BGRA."""
    data = np.frombuffer(base64.b64decode(found.uri.partition(",")[2]), np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    assert pixels.shape == (found.height, found.width, 4)
    return np.asarray(pixels, np.uint8)


def drawn(*boxes: tuple[int, int, int, int], probability: float = 0.5) -> SlideMap:
    points = SlidePoints()
    for box in boxes:
        points.add(Box(*box), probability)
    return draw_map("s", points)


@pytest.mark.parametrize("stride", [224, 223, 112])
def test_tiles_that_touch_or_overlap_leave_no_gap(stride: int) -> None:
    found = drawn(*((x * stride, y * stride, 224, 224) for x in range(13) for y in range(7)))
    assert (picture(found)[..., 3] == 255).all()
    assert found.tiles == 91
    assert max(found.width, found.height) == MAX_CELLS


@pytest.mark.parametrize("stride", [250, 300, 448])
def test_every_gap_between_tiles_is_seen(stride: int) -> None:
    found = drawn(*((x * stride, 0, 224, 224) for x in range(8)))
    opaque = picture(found)[:, :, 3].any(axis=0)
    gaps = np.diff(opaque.astype(int), prepend=0) == 1
    assert gaps.sum() == 8, "as many runs as there are tiles"
    assert opaque.mean() == pytest.approx(8 * 224 / (7 * stride + 224), abs=8 / found.width)


def test_one_column_that_is_missing_is_as_wide_as_it_was() -> None:
    found = drawn(*((x * 100, y * 100, 100, 100) for x in range(20) for y in range(10) if x != 7))
    free = picture(found)[0, :, 3] == 0
    assert free.sum() == MAX_CELLS // 20
    assert np.flatnonzero(free)[0] == 7 * MAX_CELLS // 20


def test_a_lone_tile_far_smaller_than_a_dot_is_seen() -> None:
    found = drawn((0, 0, 10, 10), (100_000, 100_000, 10, 10))
    assert (picture(found)[..., 3] > 80).sum() == 2


def test_a_dot_is_the_mean_of_its_tiles() -> None:
    points = SlidePoints()
    points.add(Box(0, 0, 100, 100), 1.0)
    points.add(Box(0, 0, 100, 100), 0.0)
    half = drawn((0, 0, 100, 100), probability=0.5)
    assert picture(draw_map("s", points)).tolist() == picture(half).tolist()


def test_failed_tiles_keep_the_place_that_their_name_tells(write_table: WriteTable) -> None:
    names = [f"A/x{x * 120}_y0.png" for x in range(4)]
    tiles = [Tile(name, "A", reason="truncated: it ends" if at == 2 else None) for at, name in enumerate(names)]
    table = Table.open(write_table([*tiles, Tile("A/nowhere.png", "A", reason="empty: 0 bytes")]))
    locator = Locator.for_table(table)
    findings = gather(table, categories=table.categories(), locator=locator, top=0, locate_failed=locator)
    assert findings.points["A"].failed.tolist() == [240, 0, 120, 100], "at the size of the other tiles"
    found = draw_map("A", findings.points["A"])
    assert (found.tiles, found.failed) == (3, 1)
    row = picture(found)[0, :, :3]
    spoilt = (row == FAILED_BGR).all(axis=1)
    assert np.flatnonzero(spoilt).tolist() == list(range(found.width // 2, 3 * found.width // 4))
