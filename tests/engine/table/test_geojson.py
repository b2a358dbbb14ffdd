"""QuPath's objects: shapely reads the shapes, and the layout is the one QuPath documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cervix_engine.errors import OutputExistsError, UsageError
from cervix_engine.table.coordinates import Locator
from cervix_engine.table.geojson import slide_file, write_geojson
from cervix_engine.table.reader import Table
from engine.table.tables import Tile, WriteTable


def _write(path: Path, *, overwrite: bool = False) -> Path:
    table = Table.open(path)
    write_geojson(table, path.parent / "geo", locator=Locator.for_table(table), overwrite=overwrite)
    return path.parent / "geo"


def test_each_slide_is_a_file_that_shapely_reads(write_table: WriteTable) -> None:
    shapely = pytest.importorskip("shapely", reason="needs shapely: pip install '.[dev]'")
    tiles = [Tile(f"{slide}/x{x}_y0.png", slide) for slide in ("A", "B") for x in (0, 120)]
    # Slide A comes again after B, as it does where folders of one name lie in different places.
    folder = _write(write_table([*tiles, Tile("z/A/x240_y0.png", "A"), Tile("A/x9_y9.png", reason="empty: 0 bytes")]))
    assert sorted(path.name for path in folder.iterdir()) == ["A.geojson", "B.geojson"]
    shapes = shapely.from_geojson((folder / "A.geojson").read_text(encoding="utf-8")).geoms
    assert [shape.bounds for shape in shapes] == [(0, 0, 120, 100), (120, 0, 240, 100), (240, 0, 360, 100)]
    assert all(shape.is_valid and shape.exterior.is_ccw is not None for shape in shapes)


def test_features_follow_qupaths_layout(write_table: WriteTable) -> None:
    folder = _write(write_table([Tile("A/x0_y0.png", "A")]))
    document = json.loads((folder / "A.geojson").read_text(encoding="utf-8"))
    assert document.keys() == {"type", "features"}
    (feature,) = document["features"]
    assert feature.keys() == {"type", "id", "geometry", "properties"}
    assert feature["geometry"]["coordinates"] == [[[0, 0], [120, 0], [120, 100], [0, 100], [0, 0]]]
    properties = feature["properties"]
    assert (properties["objectType"], properties["isLocked"], properties["name"]) == ("tile", True, "A/x0_y0.png")
    assert properties["classification"] == {"name": "cervix_mep", "color": [230, 159, 0]}
    assert properties["measurements"]["prob_cervix_mep"] == 0.6
    assert len(properties["measurements"]) == 6


def test_equal_tables_give_equal_files_and_old_ones_go_only_when_asked(write_table: WriteTable) -> None:
    path = write_table([Tile("A/x0_y0.png", "A"), Tile("B/x0_y0.png", "B")])
    folder = _write(path)
    before = (folder / "A.geojson").read_bytes()
    with pytest.raises(OutputExistsError):
        _write(path)
    write_table([Tile("A/x0_y0.png", "A")])
    assert (_write(path, overwrite=True) / "A.geojson").read_bytes() == before
    assert [item.name for item in folder.iterdir()] == ["A.geojson"]
    assert {item.name for item in path.parent.iterdir()} == {"geo", "preds.csv"}


def test_no_place_at_all_is_an_error_that_names_the_option(write_table: WriteTable) -> None:
    path = write_table([Tile("a.png")])
    with pytest.raises(UsageError, match="--coords"):
        _write(path)
    assert [item.name for item in path.parent.iterdir()] == ["preds.csv"]


@pytest.mark.parametrize("slide", ["..", ".hidden", "a/b", "a\\b", "x" * 300, "é", "%2F", "a\0b", "CON:"])
def test_any_slides_name_is_a_harmless_file_name(slide: str) -> None:
    name = slide_file(slide)
    assert name == Path(name).name
    assert not name.startswith(".")
    assert "\\" not in name
    assert len(name.encode()) < 255


def test_different_slides_have_different_files() -> None:
    names = ["a b", "a%20b", "a_b", "a/b", "a%2Fb", ".a", "%2Ea"]
    assert len({slide_file(name) for name in names}) == len(names)


def test_the_columns_are_those_that_wsinfers_converter_reads(write_table: WriteTable) -> None:
    columns = Table.open(write_table([Tile("a.png")])).columns
    assert {"minx", "miny", "width", "height"} <= set(columns)
    assert [name for name in columns if name.startswith("prob_")]
