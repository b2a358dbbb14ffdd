"""Which slide a tile is of: what a pattern or a list says, else its folder; no two slides become one by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.report import main as report
from cervix_engine.errors import UsageError
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.journal import Journal, RunIdentity
from cervix_engine.table.coordinates import FOLDER, FolderSlides, Locator, compile_slide_pattern
from cervix_engine.table.locations import check_slides, slides_for_run, slides_identified
from cervix_engine.tiles.sources.folder import Folder
from engine.run.support import Invoke, drawn_tile, read_table, work_folder

Validate = Callable[[str, Any], None]

# Two slides whose tiles lie in folders of one name, as tile cutters leave them.
TILES = tuple(f"{slide}/tiles/{x}_{y}.png" for slide in ("A", "B") for x in (0, 60) for y in (0, 60))


def draw(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(drawn_tile(seed))
    return root


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return draw(tmp_path / "study", *TILES)


def slides_in(table: Path) -> dict[str, str]:
    return {row["path"]: row["slide_id"] for row in read_table(table)}


def outputs(out: Path) -> tuple[list[str], list[str]]:
    """The slides of a run's summary, and its GeoJSON files."""
    return (
        [row["slide_id"] for row in read_table(out.with_name("slides.csv"))],
        sorted(path.name for path in out.with_name("objects").iterdir()),
    )


def derived(out: Path) -> list[str]:
    return ["--summary", str(out.with_name("slides.csv")), "--geojson", str(out.with_name("objects"))]


def test_by_default_a_slide_is_the_folder_below_the_root(study: Path, invoke: Invoke, out: Path) -> None:
    done = invoke(*derived(out), "--coords", "{x}_{y}", tiles=study)
    assert done.exit_code == 0, done.stderr
    assert set(slides_in(out).values()) == {"A/tiles", "B/tiles"}
    assert outputs(out) == (["A/tiles", "B/tiles"], ["A%2Ftiles.geojson", "B%2Ftiles.geojson"])
    warning = (
        "warning: slides are named by folder, and some folders have one name or a general one: 2 slides, each called "
        "by its path below TILES; --slide names them otherwise\n"
    )
    assert warning in done.stderr
    assert invoke("--overwrite", "-q", tiles=study).stderr == ""


@pytest.mark.parametrize(
    "pattern", ["{slide}/tiles/*", "{slide}/{*}/{*}", "{slide}/**", "**/{slide}/tiles/{x}_{y}", "{slide}/tiles/{x}_{*}"]
)
def test_a_pattern_names_slides(study: Path, invoke: Invoke, out: Path, pattern: str) -> None:
    done = invoke(*derived(out), "--coords", "{x}_{y}", "--slide", pattern, tiles=study)
    assert done.exit_code == 0, done.stderr
    assert "warning" not in done.stderr
    assert slides_in(out) == {name: name[0] for name in TILES}
    assert outputs(out) == (["A", "B"], ["A.geojson", "B.geojson"])


def test_a_list_names_slides_without_positions(
    study: Path, invoke: Invoke, out: Path, tmp_path: Path, validate: Validate
) -> None:
    listed = "".join(f"{name},case {name[0]}\n" for name in TILES)
    (tmp_path / "slides.csv").write_text("path,slide_id\n" + listed)
    done = invoke("--slide", str(tmp_path / "slides.csv"), tiles=study)
    assert done.exit_code == 0, done.stderr
    rows = read_table(out)
    assert {row["path"]: row["slide_id"] for row in rows} == {name: f"case {name[0]}" for name in TILES}
    assert {row["minx"] for row in rows} == {""}
    document = json.loads(out.with_name("preds.csv.run.json").read_text())
    validate("run", document)
    assert document["identity"]["slide"].startswith("file:")


def test_a_list_names_slides_and_positions(study: Path, invoke: Invoke, out: Path, tmp_path: Path) -> None:
    listed = "".join(f"{name},case {name[0]},{at},7\n" for at, name in enumerate(TILES))
    (tmp_path / "list.csv").write_text("path,slide_id,minx,miny\n" + listed)
    done = invoke(*derived(out), "--slide", str(tmp_path / "list.csv"), tiles=study)
    assert done.exit_code == 0, done.stderr
    assert {row["path"]: (row["slide_id"], row["minx"], row["miny"]) for row in read_table(out)} == {
        name: (f"case {name[0]}", str(at), "7") for at, name in enumerate(TILES)
    }
    assert outputs(out) == (["case A", "case B"], ["case%20A.geojson", "case%20B.geojson"])


def test_tiles_that_nothing_names_are_of_their_folder_s_slide_and_counted(
    study: Path, invoke: Invoke, out: Path, tmp_path: Path
) -> None:
    draw(study, "other/x.png")
    done = invoke("--slide", "{slide}/tiles/*", tiles=study)
    assert "warning: --slide names no slide for 1 of 9 tiles: theirs is their folder\n" in done.stderr
    assert slides_in(out)["other/x.png"] == "other"
    refused = invoke("--slide", "{slide}/patches/*", "--overwrite", tiles=study)
    assert refused.exit_code == 2
    assert refused.stderr == "error: --slide names the slide of none of 9 tiles: is it for another folder?\n"
    (tmp_path / "list.csv").write_text("path,slide_id\nelsewhere.png,s\n")
    assert invoke("--slide", str(tmp_path / "list.csv"), "--overwrite", "--dry-run", tiles=study).exit_code == 2


@pytest.mark.parametrize(
    ("slide", "message"),
    [
        ("tiles/*", "expected {slide} in it, such as '{slide}/tiles/*', or a .csv file"),
        ("{slide}/{slide}", "a placeholder is there twice"),
        ("{slides}/*", "unknown {slides}, expected {x} {y} {w} {h} {col} {row} {slide} {*}"),
        ("none.csv", "cannot read the slides none.csv"),
    ],
)
def test_what_names_no_slide_is_refused_before_any_work(invoke: Invoke, slide: str, message: str) -> None:
    refused = invoke("--slide", slide)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,slide\na.png,s\n", "line 1: no column slide_id: found path, slide; expected path,slide_id"),
        ("path,slide_id\na.png, \n", "line 2: no slide_id"),
        ("path,slide_id\na.png,s\na.png,t\n", "line 3: 'a.png' is already in line 2"),
        ("path,slide_id,minx,miny\na.png,s,one,2\n", "line 2: 'one' is no number of pixels"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_its_line(
    invoke: Invoke, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "list.csv").write_text(text)
    refused = invoke("--slide", str(tmp_path / "list.csv"))
    assert refused.exit_code == 2
    assert message in refused.stderr


def test_names_of_slides_in_several_folders_stay_apart(invoke: Invoke, out: Path, tmp_path: Path) -> None:
    study = draw(
        tmp_path / "study",
        *(
            "a/S1_x0_y0.png",
            "b/S1_x0_y0.png",
            "b/S2_x0_y0.png",
            "tile_x0_y0.png",
            "a/tile_x0_y0.png",
            "b/patch_(3,4).png",
        ),
        *("S3/plain.png", "all/S3_x1_y1.png"),
    )
    assert invoke(tiles=study).exit_code == 0
    assert slides_in(out) == {
        "a/S1_x0_y0.png": "a/S1",
        "b/S1_x0_y0.png": "b/S1",
        "b/S2_x0_y0.png": "S2",
        "tile_x0_y0.png": "study",
        "a/tile_x0_y0.png": "a",
        "b/patch_(3,4).png": "b",
        "S3/plain.png": "S3",
        "all/S3_x1_y1.png": "all/S3",
    }


def test_a_slide_that_is_said_goes_before_what_names_say(invoke: Invoke, out: Path, tmp_path: Path) -> None:
    study = draw(tmp_path / "study", "A/tiles/S_x0_y0.png", "B/tiles/S_x5_y0.png")
    assert invoke("--slide", "{slide}/tiles/*", tiles=study).exit_code == 0
    assert [(row["slide_id"], row["minx"]) for row in read_table(out)] == [("A", "0"), ("B", "5")]


def test_a_report_keeps_slides_apart_where_bare_numbers_say_locations(
    study: Path, invoke: Invoke, out: Path, tmp_path: Path
) -> None:
    draw(study, *(f"{slide}/tiles/S_{x}_{y}.png" for slide in "AB" for x in (120, 180) for y in (0, 60)))
    for options, files in (
        (["--slide", "{slide}/tiles/*"], ["A.geojson", "B.geojson"]),
        ([], [f"{slide}%2Ftiles{name}.geojson" for slide in "AB" for name in ("%2FS", "")]),
    ):
        assert invoke(*options, "--overwrite", tiles=study).exit_code == 0
        made = CliRunner().invoke(report, [str(out), "--geojson", str(tmp_path / "objects"), "--overwrite"])
        assert made.exit_code == 0, made.stderr
        assert sorted(path.name for path in (tmp_path / "objects").iterdir()) == files


def stop_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, _found: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress


def test_a_run_goes_on_naming_slides_as_it_began(study: Path, invoke: Invoke, bundle: Bundle, out: Path) -> None:
    whole = BatchConfig(study, out, bundle.root, batch_size=2, slide="{slide}/tiles/*")
    predict_folder(replace(whole, out=out.with_name("whole.csv")))
    with pytest.raises(KeyboardInterrupt):
        predict_folder(whole, progress=stop_after(2))
    refused = invoke("--slide", "{slide}/*/*", tiles=study)
    assert refused.exit_code == 1
    assert "with slide {slide}/tiles/*, this one has {slide}/*/*: run it as before" in refused.stderr
    assert invoke(tiles=study).exit_code == 0
    assert out.read_bytes() == out.with_name("whole.csv").read_bytes()


def as_begun_before_slides_were_named(out: Path) -> None:
    """Take from a partial run's journal what earlier versions did not write."""
    path = work_folder(out) / "journal.jsonl"
    journal = Journal.load(path)
    assert journal is not None
    data = json.loads(path.read_bytes().splitlines()[0])["entry"]
    for key in ("slide", "follow_links"):
        del data["identity"][key]
    listing = type("Listing", (), {"found": journal.found, "ignored": journal.ignored, "ignored_by": {}})()
    Journal.create(path, identity=RunIdentity.from_json(data["identity"]), listing=listing)


def test_a_run_of_an_earlier_version_goes_on_as_it_began(
    study: Path, invoke: Invoke, bundle: Bundle, out: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_folder(BatchConfig(study, out, bundle.root, batch_size=2), progress=stop_after(2))
    as_begun_before_slides_were_named(out)
    assert invoke(tiles=study).exit_code == 0
    assert set(slides_in(out).values()) == {"tiles"}


# ---- the rules themselves


def test_a_folder_s_slide_is_its_path_or_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "study")
    slides, bare = slides_for_run(FOLDER, Folder(Path()).slide_name), slides_for_run(None, "study")
    paths = ("1.png", "s1/2.png", "case/s2/3.png")
    assert [slides(path) for path in paths] == ["study", "s1", "case/s2"]
    assert [bare(path) for path in paths] == ["study", "s1", "s2"]
    assert slides(os.fsdecode(b"\xff/1.png")) == "\udcff"


@pytest.mark.parametrize(
    ("pattern", "path", "slide"),
    [
        ("{slide}_*", "deep/S-1_a_b.png", "S-1"),
        ("{slide}_{x}_{y}", "deep/S_1_2_3.png", "S_1"),
        ("{slide}/*", "A/b.c.png", "A"),
        ("{slide}/*", "x/A/b.png", None),
        ("**/{slide}/*", "A/b.png", "A"),
        ("**/{slide}/*", "x/y/A/b.png", "A"),
        ("cohort[1]/{slide}.tiles/*", "cohort[1]/A.tiles/1.png", "A"),
        ("{slide}**", "A.png", "A"),
    ],
)
def test_a_pattern_is_read_as_for_coordinates(pattern: str, path: str, slide: str | None) -> None:
    assert compile_slide_pattern(pattern).slide(path) == slide


def test_the_default_can_be_said() -> None:
    assert slides_identified(FOLDER) == FOLDER
    assert slides_for_run(FOLDER, "root")("a/b/c.png") == "a/b"


@pytest.mark.parametrize(
    ("paths", "slides"),
    [
        (["a/1.png", "a/2.png", "b/1.png", "3.png"], None),
        (["doe/north/1.png", "roe/north/1.png"], 2),
        (["doe/Patches/1.png", "3.png"], 2),
    ],
)
def test_a_warning_says_that_folders_name_slides_where_that_may_surprise(
    paths: list[str], slides: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    check_slides(FolderSlides("root"), paths)
    assert (f"one name or a general one: {slides} slides" in caplog.text) == (slides is not None)
    assert (caplog.text == "") == (slides is None)
    # Names can identify patients.
    assert "doe" not in caplog.text


def test_no_tile_at_all_is_no_pattern_s_fault() -> None:
    with pytest.raises(UsageError, match="none of 1 tile:"):
        check_slides(slides_for_run("{slide}/x/*", "root"), ["a/b/c.png"])


def test_names_are_kept_apart_only_where_they_must() -> None:
    locator = Locator().apart(["a/S_x0_y0.png", "a/S_x1_y0.png", "b/T_x0_y0.png", "T/plain.png"])
    assert locator.alike == {"T"}
    found = [locator.locate(path, "folder", 8, 8) for path in ("a/S_x1_y0.png", "b/T_x0_y0.png")]
    assert [location and location.slide_id for location in found] == ["S", "b/T"]
