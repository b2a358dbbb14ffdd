"""What a run says of its tiles taken together: in its record, its last lines, the page and the summary."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.cli.batch_messages import summary_lines
from cervix_engine.errors import ContractError, InferenceError
from cervix_engine.report.make import ReportConfig, make_report
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.record import RunRecord
from cervix_engine.run.shards import ShardSize
from engine.drift.watched import blurred, watched_bundle, write_slide
from engine.run.support import SpyBackend, run_setup

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return watched_bundle(tmp_path_factory.mktemp("bundle") / "watched")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides like the bundle's own tiles, one blurred, and one of too few tiles."""
    root = tmp_path_factory.mktemp("tiles") / "slides"
    for number, name in enumerate(("like_a", "like_b", "blurred")):
        change = {"change": blurred} if name == "blurred" else {}
        write_slide(root / name, 60, seed=1000 * (number + 1), **change)
    write_slide(root / "few", 5, seed=9000)
    return root


@pytest.fixture
def config(slides: Path, watched: Bundle, tmp_path: Path) -> BatchConfig:
    return BatchConfig(tiles=slides, out=tmp_path / "preds.csv", model=watched.root, batch_size=8, workers=1)


@pytest.fixture(scope="module")
def done(slides: Path, watched: Bundle, tmp_path_factory: pytest.TempPathFactory) -> BatchConfig:
    """What a finished run was asked."""
    out = tmp_path_factory.mktemp("done") / "preds.csv"
    asked = BatchConfig(tiles=slides, out=out, model=watched.root, batch_size=8, workers=1)
    predict_folder(asked)
    return asked


def test_the_record_names_the_slide_that_is_strange(done: BatchConfig, validate: Callable[[str, Any], None]) -> None:
    record = RunRecord.load(done.record_path)
    validate("run", json.loads(done.record_path.read_text()))
    finding = record.drift
    assert finding is not None
    assert (finding.step, finding.judged, finding.too_small) == (1, 3, 1)
    assert finding.run is not None
    assert finding.run.tiles == 185
    assert finding.drifted_slides == ("blurred",)
    assert finding.slides["blurred"].moved[0].words.startswith(("softer", "less fine detail"))
    lines = list(summary_lines(record, done.out, verbose=False))
    assert any("drift: 1 of 3 slides is unlike" in line and "blurred" in line for line in lines)


def test_page_and_summary_say_so(done: BatchConfig, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="needs jinja2: pip install '.[report]'")
    make_report(ReportConfig(done.out, out=tmp_path / "page.html", summary=tmp_path / "slides.csv"))
    page = (tmp_path / "page.html").read_text()
    assert ">Drift</h2>" in page
    assert "1 of 3 slides lies further away than chance explains; of 1 more, too few tiles were measured." in page
    with (tmp_path / "slides.csv").open(encoding="utf-8", newline="") as file:
        flags = {row["slide_id"]: row["flags"] for row in csv.DictReader(file)}
    assert {slide for slide, named in flags.items() if "drift" in named.split("; ")} == {"blurred"}


def test_like_tiles_are_no_drift(config: BatchConfig, slides: Path) -> None:
    record = predict_folder(replace(config, tiles=slides / "like_a"))
    assert record.drift is not None
    assert not record.drift.drifted
    assert any(
        line.startswith("drift: none in 60 measured") for line in summary_lines(record, config.out, verbose=False)
    )


def test_an_interrupted_run_finds_the_same(config: BatchConfig, done: BatchConfig) -> None:
    stop: dict[int, BaseException] = {9: InferenceError("out of memory")}
    with pytest.raises(InferenceError):
        predict_folder(config, setup=run_setup(around=partial(SpyBackend, fail=stop), shard=ShardSize(24)))
    assert predict_folder(config, setup=run_setup(shard=ShardSize(40))).resumed > 0
    assert RunRecord.load(config.record_path).drift == RunRecord.load(done.record_path).drift
    assert config.out.read_bytes() == done.out.read_bytes()


def test_a_bundle_without_a_reference_watches_nothing(config: BatchConfig, bundle: Bundle, slides: Path) -> None:
    record = predict_folder(replace(config, model=bundle.root, tiles=slides / "few"))
    assert record.drift is None
    assert not any("drift" in line for line in summary_lines(record, config.out, verbose=False))
    assert any("drift: not watched" in line for line in summary_lines(record, config.out, verbose=True))


def test_a_retry_of_few_tiles_keeps_what_was_known(config: BatchConfig, slides: Path, tmp_path: Path) -> None:
    tiles = tmp_path / "tiles"
    write_slide(tiles, 40, seed=50_000)
    (tiles / "zz.png").write_bytes(b"broken")
    first = predict_folder(replace(config, tiles=tiles))
    write_slide(tmp_path / "one", 1, seed=60_000)
    (tmp_path / "one" / "tile_00000.png").replace(tiles / "zz.png")
    again = predict_folder(replace(config, tiles=tiles, retry_failures=True))
    assert first.drift is not None
    assert (again.failed, again.drift) == (0, first.drift)


@pytest.mark.parametrize("more", [False, True])
def test_an_update_that_drops_rows_of_a_named_slide_keeps_nothing_of_it(
    config: BatchConfig, slides: Path, tmp_path: Path, *, more: bool
) -> None:
    tiles = tmp_path / "tiles"
    write_slide(tiles / "a", 40, seed=50_000)
    write_slide(tiles / "b", 2, seed=51_000)
    config = replace(config, tiles=tiles)
    first = predict_folder(config)
    assert first.drift is not None
    assert list(first.drift.slides) == ["a"]
    next(iter((tiles / "b").iterdir())).unlink()
    if more:
        write_slide(tiles / "c", 1, seed=52_000)
    assert predict_folder(replace(config, update=True)).drift == first.drift  # `b` is not named
    (tiles / "a" / "tile_00003.png").unlink()
    found = predict_folder(replace(config, update=True)).drift
    assert found is None or (found.run, found.slides) == (None, {})


def test_the_command_says_it(config: BatchConfig) -> None:
    from cervix_engine.cli.batch import main

    options = [str(config.tiles), "--out", str(config.out), "--model", str(config.model)]
    said = CliRunner().invoke(main, options)
    assert said.exit_code == 0, said.output
    assert "warning: drift: 1 of 3 slides is unlike the training tiles: blurred," in said.output


def test_a_reference_that_is_broken_is_refused_before_anything_is_written(
    config: BatchConfig, watched: Bundle, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(watched.root, broken)
    data = json.loads(watched.read("drift.json"))
    del data["images"]["means"]
    (broken / "drift.json").write_text(json.dumps(data), encoding="utf-8")
    seal(broken)
    with pytest.raises(ContractError, match=r"drift\.json is malformed"):
        predict_folder(replace(config, model=broken))
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
    assert predict_folder(config).ok == 185
