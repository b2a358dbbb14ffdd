"""Places from a CSV file: they go into the rows, are part of what a run is, and a bad file is refused with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.cli.report import main as report_main
from cervix_engine.errors import UsageError
from cervix_engine.table.locations import Locations, identified, locating_for_run
from engine.run.support import drawn_tile, read_table

GEOMETRY = ("slide_id", "minx", "miny", "width", "height")
GOOD = "path,minx,miny,width,height,slide_id\na,b.png,1,2,3,4,s\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (root := tmp_path / "study").mkdir()
    (root / "deep").mkdir()
    for seed, name in enumerate(["a,b.png", "deep/one.png", "x_x7_y8.png", "bad.png"]):
        (root / name).write_bytes(drawn_tile(seed) if name != "bad.png" else b"no tile")
    return root


@pytest.fixture
def places(tmp_path: Path) -> Path:
    path = tmp_path / "places.csv"
    path.write_text(
        'path,minx,miny,width,height,slide_id\n"a,b.png",10,20,512,256,slide 1\ndeep/one.png,30,40,,,\n'
        "bad.png,50,60,8,8,slide 1\nnot there.png,0,0,1,1,\n"
    )
    return path


def run(study: Path, bundle: Bundle, *options: str | Path) -> Result:
    paths = ["--out", study.parent / "preds.csv", "--model", bundle.root, "-b", "2"]
    return CliRunner().invoke(main, [str(item) for item in (study, *paths, *options)])


def rows(study: Path) -> dict[str, tuple[str, ...]]:
    return {row["path"]: tuple(row[name] for name in GEOMETRY) for row in read_table(study.parent / "preds.csv")}


def test_the_file_says_where_tiles_lie(study: Path, bundle: Bundle, places: Path) -> None:
    done = run(study, bundle, "--coords", places)
    assert done.exit_code == 3, done.output
    found = rows(study)
    assert found["a,b.png"] == ("slide 1", "10", "20", "512", "256")
    assert found["deep/one.png"][:3] == ("deep", "30", "40")
    assert int(found["deep/one.png"][3]) > 0
    # A name that spells a place out is not asked where a file is given.
    assert found["x_x7_y8.png"][:3] == ("study", "", "")
    assert found["bad.png"] == ("slide 1", "", "", "", "")


def test_a_retry_finds_the_file_again_and_refuses_another_or_a_changed_one(
    study: Path, bundle: Bundle, places: Path, tmp_path: Path
) -> None:
    run(study, bundle, "--coords", places)
    (study / "bad.png").write_bytes(drawn_tile(9))
    (tmp_path / "other.csv").write_text("path,minx,miny\n")
    refused = run(study, bundle, "--retry-failures", "--coords", tmp_path / "other.csv")
    assert refused.exit_code == 1
    assert "coords" in refused.stderr
    kept = places.read_text()
    places.write_text(kept + "x_x7_y8.png,1,1,1,1,\n")  # whose row would be kept
    changed = run(study, bundle, "--retry-failures")
    assert changed.exit_code == 1
    assert "have changed since the table was made: bring it up to date with --update" in changed.stderr
    places.write_text(kept + "more.png,1,1,1,1,\n")
    assert run(study, bundle, "--retry-failures").exit_code == 0
    assert rows(study)["bad.png"] == ("slide 1", "50", "60", "8", "8")


def test_a_file_whose_name_is_not_utf8_is_remembered(study: Path, bundle: Bundle, places: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd \xff.csv")
    places.rename(odd)
    assert run(study, bundle, "--coords", odd).exit_code == 3
    (study / "bad.png").write_bytes(drawn_tile(9))
    done = run(study, bundle, "--retry-failures")
    assert done.exit_code == 0, done.output
    assert rows(study)["bad.png"][:3] == ("slide 1", "50", "60")


def test_a_report_takes_the_file_too(study: Path, bundle: Bundle, places: Path, tmp_path: Path) -> None:
    run(study, bundle)
    assert rows(study)["a,b.png"][1] == ""
    command = [study.parent / "preds.csv", "--geojson", tmp_path / "geo", "--coords", places]
    done = CliRunner().invoke(report_main, [str(item) for item in command])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "geo").iterdir()) == [
        "deep.geojson",
        "slide%201.geojson",
        "x.geojson",  # as the table says
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,minx\n", "line 1: no column miny: found path, minx"),
        ("path,minx,miny\na.png,1,2\na.png,3,4\n", "line 3: 'a.png' is already in line 2"),
        ("path,minx,miny\n,1,2\n", "line 2: no path"),
        ("path,minx,miny\na.png,-1,2\n", "line 2: '-1' is no number of pixels"),
        ("path,minx,miny\na.png,1\n", "line 2: 2 of 3 cells"),
        ("path,minx,miny,width\na.png,1,2,wide\n", "line 2: 'wide' is no number of pixels"),
        (
            f"path,minx,miny\na.png,1,2\nb.png,1,{2**63}\n",
            f"line 3: {2**63} is no number of pixels: {2**63 - 1} is the most",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_any_work(
    study: Path, bundle: Bundle, places: Path, text: str, message: str
) -> None:
    places.write_text(text)
    done = run(study, bundle, "--coords", places)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_file_is_an_error_of_one_line(study: Path, bundle: Bundle) -> None:
    done = run(study, bundle, "--coords", "none.csv")
    assert done.exit_code == 2
    assert "cannot read the coordinates none.csv" in done.stderr


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    path = tmp_path / "places.csv"
    path.write_bytes(b"path,minx,miny\n\xff.png,1,2\n")
    place = Locations.load(path).locate("\udcff.png", "s", 3, 4)
    assert place is not None
    assert tuple(place.box) == (1, 2, 3, 4)


def test_what_identifies_a_file_finds_it_again(places: Path) -> None:
    coords = identified(str(places))
    assert identified(coords) == coords
    assert locating_for_run(coords).locate("deep/one.png", "s", 1, 1) is not None
    with pytest.raises(UsageError, match="expected"):
        identified("{x}")


def test_a_file_from_a_spreadsheet_or_from_pandas_is_read(tmp_path: Path) -> None:
    path = tmp_path / "locations.csv"
    path.write_bytes(b"\xef\xbb\xbfpath,minx,miny,width,height\r\na.png,87.0,0,,\r\nb.png,1,2,512.0,256.0\r\n")
    locations = Locations.load(path)
    boxes = [locations.locate(name, "s", 3, 4) for name in ("a.png", "b.png")]
    assert [tuple(found.box) for found in boxes if found is not None] == [(87, 0, 3, 4), (1, 2, 512, 256)]
