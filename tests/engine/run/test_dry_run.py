"""`--dry-run` says what a run would be, from a sample of it, and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.cli.batch_messages import duration
from cervix_engine.errors import CervixError, UsageError
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.dry_run import SAMPLED_BATCHES, forecast
from cervix_engine.run.session import Chosen
from engine.run.support import beside, draw_folder, make_bundle, make_fake_bundle

BATCH = 4


@pytest.fixture
def config(tmp_path: Path, bundle: Bundle) -> BatchConfig:
    tiles = draw_folder(tmp_path / "study", 90)
    (tiles / "notes.txt").write_text("no tile")
    (tmp_path / "out").mkdir()
    return BatchConfig(tiles=tiles, out=tmp_path / "out" / "preds.csv", model=bundle.root, batch_size=BATCH, workers=2)


def test_it_counts_samples_and_writes_nothing(config: BatchConfig) -> None:
    expected = forecast(config)
    assert (expected.found, expected.ignored, expected.failed) == (90, 1, 0)
    # The last of the spread batches may be the run's short one.
    assert SAMPLED_BATCHES * BATCH - BATCH < expected.sampled <= SAMPLED_BATCHES * BATCH
    assert expected.seconds == pytest.approx(expected.start_s + 90 / expected.tiles_per_sec)
    assert expected.peak_bytes > 10e6
    assert beside(config.out) == set()


def test_the_tables_size_is_near_and_the_forecast_as_its_schema_says(config: BatchConfig) -> None:
    expected = forecast(config)
    predict_folder(config)
    assert expected.table_bytes == pytest.approx(config.out.stat().st_size, rel=0.1)
    schema = json.loads((resources.files("cervix_engine") / "schemas" / "forecast.schema.json").read_text())
    jsonschema.validate(expected.to_json(), schema)


def test_time_is_what_batches_take(config: BatchConfig, tmp_path: Path) -> None:
    slow = Chosen(FakeBackend(seconds_per_batch=0.1))
    own = replace(config, model=make_fake_bundle(tmp_path / "fake").root)
    expected = forecast(own, setup=RunSetup(choose=lambda _: slow))
    assert expected.start_s >= 0.2  # eight golden tiles, in two batches
    # A batch of 4 takes at least 0.1 s, so no sample can show more than 40 tiles a second.
    assert expected.tiles_per_sec <= 40
    assert expected.seconds >= 0.2 + 90 / 40


@pytest.mark.parametrize("tiles", [1, 9])
def test_a_folder_smaller_than_the_sample_is_all_sampled(
    tmp_path: Path, config: BatchConfig, bundle: Bundle, tiles: int
) -> None:
    few = BatchConfig(draw_folder(tmp_path / "few", tiles), config.out, bundle.root, batch_size=BATCH)
    expected = forecast(few)
    assert expected.sampled == expected.found == tiles


def test_failures_of_the_sample_are_said(config: BatchConfig) -> None:
    for tile in Path(config.tiles).rglob("*.png"):
        tile.write_bytes(b"no tile")
    done = CliRunner().invoke(main, [*arguments(config), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "of them failed" in done.stdout


def arguments(config: BatchConfig) -> list[str]:
    return [str(config.tiles), "--out", str(config.out), "--model", str(config.model), "-b", str(BATCH)]


def test_the_command_prints_it(config: BatchConfig) -> None:
    done = CliRunner().invoke(main, [*arguments(config), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "90 tiles, and as many rows   (1 other file ignored: 1 with another suffix)\n" in done.stdout
    assert "nothing was written" in done.stdout
    assert beside(config.out) == set()


def test_as_an_event(config: BatchConfig) -> None:
    done = CliRunner().invoke(main, [*arguments(config), "--dry-run", "--json"])
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["forecast"]
    schema = json.loads((resources.files("cervix_engine") / "schemas" / "event.schema.json").read_text())
    for event in events:
        jsonschema.validate(event, schema)
    assert events[0]["forecast"]["found"] == 90


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda config: Path(config.tiles) / "none", UsageError),
        (lambda config: config.out.parent, UsageError),  # an empty folder
    ],
)
def test_what_a_run_would_refuse_is_refused(
    config: BatchConfig, change: Callable[[BatchConfig], Path], error: type[CervixError]
) -> None:
    with pytest.raises(error):
        forecast(BatchConfig(change(config), config.out, config.model))


def test_an_altered_bundle_is_refused(config: BatchConfig, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "own").root
    next(bundle.glob("*.onnx")).write_bytes(b"altered")
    with pytest.raises(CervixError, match="altered"):
        forecast(BatchConfig(config.tiles, config.out, bundle))


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (42, "42 s"), (200, "3 min 20 s"), (18_600, "5 h 10 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
