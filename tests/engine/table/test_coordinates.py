"""Six ways in which files say where their tiles lie, and names that only look like it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cervix_engine.errors import UsageError
from cervix_engine.table.coordinates import Locator, compile_pattern, compile_slide_pattern
from cervix_engine.table.reader import Table
from engine.table.tables import Tile, WriteTable

# Tiles of these tables are 120 wide and 100 high.
GRID = [(x * 120, y * 100) for x in range(4) for y in range(4)]

SCHEMES = {
    "folder and bare numbers": "S1/{x}_{y}.jpg",
    "slide and bare numbers": "all/S1_{x}_{y}.png",
    "x and y": "all/S1_x{x}_y{y}.png",
    "x and y, spelt out": "S1/tile-x={x},y={y}.tif",
    "QuPath's exporter": "all/S1 [x={x},y={y},w=120,h=100].tif",
    "in brackets": "S1/patch_({x},{y}).jpg",
}


def _places(path: Path, pattern: str | None = None) -> list[tuple[str, tuple[int, ...]] | None]:
    table = Table.open(path)
    locate = Locator.for_table(table, pattern=pattern)
    return [place and (place.slide_id, tuple(place.box)) for place in map(locate, table.rows())]


@pytest.mark.parametrize("name", SCHEMES.values(), ids=SCHEMES)
def test_each_scheme_gives_slide_and_box(write_table: WriteTable, name: str) -> None:
    paths = [name.format(x=x, y=y) for x, y in GRID]
    places = _places(write_table([Tile(path, path.split("/")[0]) for path in paths]))
    assert places == [("S1", (x, y, 120, 100)) for x, y in GRID]


def test_the_tables_own_columns_come_first(write_table: WriteTable) -> None:
    path = write_table([Tile("a/x1_y2.png", "a")])
    with path.open(newline="", encoding="utf-8") as file:
        header, cells = csv.reader(file)
    row = dict(zip(header, cells, strict=True)) | {"minx": "5120", "miny": "640"}
    path.write_text(",".join(header) + "\n" + ",".join(row.values()) + "\n", encoding="utf-8")
    assert _places(path) == [("a", (5120, 640, 120, 100))]


@pytest.mark.parametrize(
    "paths",
    [
        [f"dyk/{patient:03}_{cell:02}.bmp" for patient in range(1, 40) for cell in range(1, 6)],  # SIPaKMeD
        [f"all/NILM_{patient}_{cell}.jpg" for patient in range(1, 30) for cell in range(1, 4)],
        [f"all/149143370-149143378-{cell:03}.BMP" for cell in range(1, 4)],  # Herlev
        ["all/S1_4000_8000.png"],  # alone, two numbers show nothing
        ["all/max12_may3.png", "all/tax2020y.png", "all/plain.png", "all/2026-11-25.png"],
        [f"all/scan_{number}_600.png" for number in range(300)],
    ],
    ids=["patient and cell", "class, patient and cell", "three numbers", "one tile", "words", "a running number"],
)
def test_other_numbers_are_no_coordinates(write_table: WriteTable, paths: list[str]) -> None:
    assert set(_places(write_table([Tile(path, path.split("/")[0]) for path in paths]))) == {None}


def test_a_name_without_a_suffix_is_read_below_a_folder_with_one() -> None:
    region = "a.b/CMU-1.svs/x004480_y000224_w448_h447"
    assert Locator().locate(region, "a.b/CMU-1.svs", 224, 224) == ("a.b/CMU-1.svs", (4480, 224, 448, 447))
    assert compile_slide_pattern("{*}/{slide}.svs/*").slide(region) == "CMU-1"


def test_half_overlapping_tiles_still_lie_beside_each_other(write_table: WriteTable) -> None:
    grid = [(x * 60, y * 50) for x in range(8) for y in range(8)]
    places = _places(write_table([Tile(f"S1/{x}_{y}.png", "S1") for x, y in grid]))
    assert places == [("S1", (x, y, 120, 100)) for x, y in grid]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("{slide}-{col}-{row}", "f/A-3-2.png", ("A", (360, 200, 120, 100))),
        ("{*}_{y}_{x}", "f/anything_7_9.png", ("f", (9, 7, 120, 100))),
        ("{slide}/{*}.{x}.{y}", "A/t.9.7.png", ("A", (9, 7, 120, 100))),
        ("{slide}_{x}_{y}_{w}_{h}", "f/A_9_7_512_256.png", ("A", (9, 7, 512, 256))),
        ("{slide}_x{x}_y{y}", "f/A_9_7.png", None),
        # A table holds numbers of 64 bits, signed.
        ("{slide}_{x}_{y}", f"f/A_{2**63 - 1}_7.png", ("A", (2**63 - 1, 7, 120, 100))),
        ("{slide}_{x}_{y}", f"f/A_{2**63}_7.png", None),
        ("{slide}_{col}_{row}", f"f/A_9_{2**62}.png", None),
        ("{slide}_{x}_{y}_{w}_{h}", f"f/A_9_7_1_{2**63}.png", None),
        (None, f"f/A_x7_y{'9' * 20}.png", None),
    ],
)
def test_a_pattern_reads_any_other_name(
    write_table: WriteTable, pattern: str | None, path: str, expected: tuple[str, tuple[int, ...]] | None
) -> None:
    assert _places(write_table([Tile(path, path.split("/")[0])]), pattern) == [expected]


@pytest.mark.parametrize("pattern", ["", "{x}", "{x}_{y}_{z}", "{x}_{x}_{y}", "{col}_{y}", "x_y"])
def test_a_pattern_without_a_position_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="coordinates"):
        compile_pattern(pattern)


def test_a_failed_tile_has_no_place(write_table: WriteTable) -> None:
    assert _places(write_table([Tile("S1_x0_y0.png", reason="empty: 0 bytes")])) == [None]
