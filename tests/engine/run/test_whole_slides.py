"""Whole slides as a source of tiles: the same answers as of tiles that were cut before, and the books balance."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.report import main as report
from cervix_engine.errors import ResumeMismatchError, UsageError
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.record import RunRecord
from cervix_engine.run.shards import ShardSize
from cervix_engine.run.verify import verify_tiles
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.slides.grid import GridRules, Region
from cervix_engine.tiles.sources.slides import WholeSlides
from engine.run.support import FINISHED, Invoke, Killed, SpyBackend, beside, draw_folder, read_table, run_setup
from engine.tiles.slides.drawn_slides import draw_slide, write_generic

RULES = GridRules(tile_px=100, mpp=0.5)
BOX = ("minx", "miny", "width", "height")


def box_of(row: dict[str, str]) -> Region:
    return Region(*(int(row[name]) for name in BOX))


def predictions(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name.startswith("prob_") or name in ("pred", "confidence")}


def cut_by_hand(slides: Path, rows: list[dict[str, str]], folder: Path) -> Path:
    """The tiles of a table as files, read from level 0 by OpenSlide alone."""
    for row in rows:
        x, y, width, height = box_of(row)
        with openslide.OpenSlide(slides / row["slide_id"]) as slide:
            pixels = np.asarray(slide.read_region((x, y), 0, (width, height)).convert("RGB"))
        tile = cv2.resize(pixels, (100, 100), interpolation=cv2.INTER_AREA)
        path = folder / f"{row['path']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), tile[..., ::-1])
    return folder


@pytest.fixture
def config(slides: Path, bundle: Bundle, out: Path) -> BatchConfig:
    return BatchConfig(tiles=slides, out=out, model=bundle.root, batch_size=4, grid=RULES)


@pytest.fixture(scope="module")
def undisturbed(slides: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of both slides. Read only."""
    out = tmp_path_factory.mktemp("undisturbed") / "preds.csv"
    predict_folder(BatchConfig(tiles=slides, out=out, model=bundle.root, batch_size=4, grid=RULES))
    return out


def test_answers_are_those_for_the_same_tiles_cut_into_files(
    slides: Path, bundle: Bundle, undisturbed: Path, tmp_path: Path
) -> None:
    rows = read_table(undisturbed)
    assert {row["slide_id"] for row in rows} == {"aperio.svs", "generic.tiff"}
    assert len(rows) > 60
    files = cut_by_hand(slides, rows, tmp_path / "files")
    predict_folder(BatchConfig(tiles=files, out=tmp_path / "files.csv", model=bundle.root, batch_size=4))
    of_files = {row["path"].removesuffix(".png"): predictions(row) for row in read_table(tmp_path / "files.csv")}
    assert {row["path"]: predictions(row) for row in rows} == of_files


def test_boxes_are_pixels_of_level_0_and_reach_geojson_as_they_are(slides: Path, undisturbed: Path, out: Path) -> None:
    rows = {row["path"]: row for row in read_table(undisturbed)}
    sides = {row["slide_id"]: (row["width"], row["height"]) for row in rows.values()}
    assert sides == {"aperio.svs": ("200", "200"), "generic.tiff": ("100", "100")}
    done = CliRunner().invoke(report, [str(undisturbed), "--geojson", str(out.with_name("objects"))])
    assert done.exit_code == 0, done.output
    found = 0
    for path in out.with_name("objects").iterdir():
        for item in json.loads(path.read_text(encoding="utf-8"))["features"]:
            row = rows[item["properties"]["name"]]
            assert path.name == f"{row['slide_id']}.geojson"
            assert row["path"] == f"{row['slide_id']}/{box_of(row).name}"
            [corners] = item["geometry"]["coordinates"]
            x, y, width, height = box_of(row)
            assert corners == [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
            found += 1
    assert found == len(rows)


def test_rows_come_in_the_order_of_the_grid(slides: Path, undisturbed: Path) -> None:
    boxes = [(row["slide_id"], *box_of(row)) for row in read_table(undisturbed)]
    assert boxes == sorted(boxes)


@pytest.fixture
def mixed(slides: Path, tmp_path: Path) -> Path:
    """Two good slides, three that are none, one without its resolution, one of glass alone, and files beside them."""
    (folder := tmp_path / "mixed" / "deep").mkdir(parents=True)
    shutil.copytree(slides, tmp_path / "mixed", dirs_exist_ok=True)
    (folder / "text.svs").write_text("no slide")
    (folder / "cut.svs").write_bytes((slides / "aperio.svs").read_bytes()[:-200])
    write_generic(folder / "silent.tif", draw_slide(600, 500), mpp=None, downsamples=(1,))
    write_generic(folder / "small.tif", draw_slide(90, 500), downsamples=(1,))
    write_generic(folder / "glass.tif", np.full((600, 700, 3), 243, np.uint8), downsamples=(1,))
    for name in ("notes.txt", "thumb.jpg", "series.dcm", ".hidden.svs"):
        (folder / name).write_bytes(b"beside")
    return tmp_path / "mixed"


def test_a_slide_that_cannot_be_cut_is_one_row_and_the_others_go_on(
    mixed: Path, config: BatchConfig, undisturbed: Path, out: Path
) -> None:
    record = predict_folder(replace(config, tiles=mixed))
    failed = {row["path"]: row for row in read_table(out) if row["status"] == "failed"}
    assert {path: row["error"].partition(":")[0] for path, row in failed.items()} == {
        "deep/cut.svs/slide": "broken_slide",
        "deep/glass.tif/slide": "no_tissue",
        "deep/silent.tif/slide": "no_resolution",
        "deep/small.tif/slide": "too_small",
        "deep/text.svs/slide": "not_a_slide",
    }
    assert all(row["slide_id"] == path.removesuffix("/slide") for path, row in failed.items())
    good = [row for row in read_table(out) if row["status"] == "ok"]
    assert [(row["path"], predictions(row)) for row in good] == [
        (row["path"], predictions(row)) for row in read_table(undisturbed)
    ]
    assert record.ignored_by == {"suffix": 2, "whole_slide": 1, "hidden": 1}


@pytest.mark.parametrize("at", [7, 15])
def test_a_killed_run_goes_on_to_the_same_bytes(config: BatchConfig, undisturbed: Path, out: Path, at: int) -> None:
    def around(backend: Any) -> SpyBackend:
        return SpyBackend(backend, fail={at: Killed()})

    with pytest.raises(Killed):
        predict_folder(config, setup=run_setup(around=around, shard=ShardSize(8), error=Killed()))
    assert not out.exists()
    record = predict_folder(replace(config, grid=None))  # the rules are the earlier run's
    assert record.resumed == at * 4
    assert out.read_bytes() == undisturbed.read_bytes()
    assert beside(out) == FINISHED


def test_other_rules_do_not_go_on_with_a_partial_run(config: BatchConfig) -> None:
    def around(backend: Any) -> SpyBackend:
        return SpyBackend(backend, fail={4: Killed()})

    with pytest.raises(Killed):
        predict_folder(config, setup=run_setup(around=around, error=Killed()))
    with pytest.raises(ResumeMismatchError, match=r"with grid .*0\.5.*, this one has .*0\.25"):
        predict_folder(replace(config, grid=GridRules(tile_px=100, mpp=0.25)))


def test_a_slide_that_changes_after_the_listing_gives_rows_that_say_so(
    slides: Path, config: BatchConfig, tmp_path: Path, out: Path
) -> None:
    shutil.copytree(slides, tmp_path / "changing")

    def change() -> None:
        path = tmp_path / "changing" / "aperio.svs"
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    predict_folder(replace(config, tiles=tmp_path / "changing"), setup=run_setup(once_listed=change))
    errors = {(row["slide_id"], row["error"].partition(":")[0]) for row in read_table(out)}
    assert errors == {("aperio.svs", "changed"), ("generic.tiff", "")}


def test_a_named_slide_is_cut_by_default_and_its_table_may_lie_beside_it(
    slides: Path, invoke: Invoke, tmp_path: Path
) -> None:
    slide = tmp_path / "one.svs"
    shutil.copy(slides / "aperio.svs", slide)
    done = invoke("-b", "4", "--preview", str(tmp_path / "seen"), tiles=slide, out=tmp_path / "one.csv")
    assert done.exit_code == 0, done.output
    assert "the model was trained on tiles that show a single cell each" in done.output
    rows = read_table(tmp_path / "one.csv")
    assert {(row["slide_id"], row["width"]) for row in rows} == {("one.svs", "448")}
    assert cv2.imread(str(tmp_path / "seen" / "one.svs.png")) is not None
    # Its name is followed where it is a link.
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one.svs").symlink_to(slide)
    done = invoke("-b", "4", "-q", tiles=tmp_path / "links" / "one.svs", out=tmp_path / "linked.csv")
    assert (done.exit_code, done.output) == (0, "")
    assert (tmp_path / "linked.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_a_dry_run_with_previews_writes_these_and_says_so(
    slides: Path, invoke: Invoke, tmp_path: Path, out: Path
) -> None:
    seen = tmp_path / "seen"
    done = invoke("--whole-slides", "-b", "4", "--dry-run", "--preview", str(seen), tiles=slides)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"nothing but pictures in {seen} was written: leave --dry-run out to run it\n")
    assert {path.name for path in seen.iterdir()} == {"aperio.svs.png", "generic.tiff.png"}
    assert beside(out) == set()


def test_a_slide_among_tiles_is_a_row_that_names_the_option(invoke: Invoke, tmp_path: Path, out: Path) -> None:
    folder = draw_folder(tmp_path / "mixed", 3)
    write_generic(folder / "scan.tif", draw_slide(2400, 300), downsamples=(1, 4))
    done = invoke("-b", "4", tiles=folder)
    assert (done.exit_code, "4 tiles: 3 predicted, 1 failed (1 whole_slide)" in done.output) == (3, True)
    [row] = [row for row in read_table(out) if row["status"] == "failed"]
    assert row["path"] == "scan.tif"
    assert row["error"] == (
        "whole_slide: a TIFF of 2400x300 pixels with further levels or pages: cervix-batch --whole-slides cuts it into "
        "tiles"
    )


def test_micrometres_overlap_and_all_of_the_grid(slides: Path, invoke: Invoke, out: Path) -> None:
    options = ["--whole-slides", "--tile-um", "100", "--mpp", "1", "--overlap", "0.5", "--no-tissue-mask", "-b", "8"]
    done = invoke(*options, tiles=slides)
    assert done.exit_code == 0, done.output
    boxes = [box_of(row) for row in read_table(out) if row["slide_id"] == "generic.tiff"]
    assert {(box.width, box.height) for box in boxes} == {(200, 200)}
    assert sorted({box.x for box in boxes}) == list(range(0, 1101, 100))
    assert len(boxes) == 12 * 9
    identity = json.loads(out.with_name("preds.csv.run.json").read_text())["identity"]
    assert GridRules.from_text(identity["grid"]) == GridRules(100, 1.0, 0.5, None, tissue_only=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mpp", "0.5"], "--mpp is for whole slides: pass --whole-slides, or name a slide"),
        (["--preview", "seen"], "--preview is for whole slides: pass --whole-slides, or name a slide"),
        (["--whole-slides", "--tile-px", "9", "--tile-um", "9"], "--tile-px and --tile-um: expected one of them"),
        (["--whole-slides", "--tile-um", "0.1"], "a tile of 0 pixels, expected 1 to 8192"),
    ],
)
def test_options_that_make_no_sense_are_one_line(slides: Path, invoke: Invoke, options: list[str], words: str) -> None:
    done = invoke(*options, tiles=slides)
    assert (done.exit_code, done.output) == (2, f"error: {words}\n")


def test_a_folder_without_slides_and_a_slide_that_is_not_there_are_refused(
    slides: Path, tiles: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no such folder or slide"):
        WholeSlides.named(tmp_path / "gone.svs", RULES, follow_links=False, previews=None).check()
    (tmp_path / "spool").mkdir()
    with pytest.raises(UsageError, match=r"no tiles in .*50 other files \(50 with another suffix\)"):
        discover(WholeSlides(tiles, RULES), spool=tmp_path / "spool")


def test_without_the_option_a_folder_of_slides_says_which_one_is_meant(
    slides: Path, invoke: Invoke, tmp_path: Path
) -> None:
    (tmp_path / "scans").mkdir()
    shutil.copy(slides / "aperio.svs", tmp_path / "scans")
    done = invoke(tiles=tmp_path / "scans")
    assert done.exit_code == 2
    assert "1 other file (1 whole slide); --whole-slides cuts whole slides into tiles" in done.output


def test_hashes_verify_and_thumbnails_are_of_the_tiles_that_were_predicted(
    slides: Path, config: BatchConfig, out: Path
) -> None:
    predict_folder(replace(config, hash_tiles=True, judge_quality=True))
    assert all(row["sha256"] for row in read_table(out))
    assert verify_tiles(out, slides) == []
    done = CliRunner().invoke(report, [str(out), "--out", str(out.with_name("r.html")), "--tiles", str(slides)])
    assert done.exit_code == 0, done.output
    page = out.with_name("r.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") > 20
    assert "not among these tiles" not in page


def test_a_mended_slide_is_cut_by_a_new_run_alone(mixed: Path, config: BatchConfig, slides: Path, out: Path) -> None:
    predict_folder(replace(config, tiles=mixed))
    found = RunRecord.load(config.record_path).found
    shutil.copy(slides / "generic.tiff", mixed / "deep" / "silent.tif")
    predict_folder(replace(config, tiles=mixed, retry_failures=True))
    errors = {row["path"]: row["error"] for row in read_table(out) if row["status"] == "failed"}
    assert len(read_table(out)) == found
    assert errors["deep/silent.tif/slide"] == "changed: the slide could not be cut when it was listed, and can be now"
    assert errors["deep/text.svs/slide"].startswith("not_a_slide")
