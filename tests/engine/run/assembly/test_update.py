"""`--update` predicts what is new or changed, drops what is gone, and keeps every other row of a finished table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.backends import Backend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.cli.batch_messages import forecast_lines, summary_lines
from cervix_engine.errors import OutputError, ResumeMismatchError, UsageError
from cervix_engine.run.assembly.base import Kept
from cervix_engine.run.assembly.beside import record_of
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.dry_run import Forecast, forecast
from cervix_engine.run.record import RunRecord, TableChanges
from cervix_engine.run.session import Chosen, SessionRequest
from cervix_engine.run.shards import ShardSize
from cervix_engine.run.verify import verify_table, verify_tiles
from cervix_engine.tiles.listing import FolderChanges
from engine.run.support import (
    FINISHED,
    Killed,
    SpyBackend,
    beside,
    choose_fake,
    draw_folder,
    drawn_tile,
    encoded,
    finished_files,
    make_fake_bundle,
    read_table,
    run_setup,
    work_folder,
)

pytestmark = pytest.mark.timeout(120)

BAD = ("slide_a/broken.png", "tile_00004.png")
TILES = 24


@dataclass
class Spied:
    """A setup with shards of a batch, whose backends are spied on."""

    spies: list[SpyBackend] = field(default_factory=list)

    def setup(self, **options: Any) -> RunSetup:
        return run_setup(choose=choose_fake, around=self._spied, shard=ShardSize(1), **options)

    def _spied(self, backend: Backend) -> SpyBackend:
        self.spies.append(SpyBackend(backend))
        return self.spies[-1]

    @property
    def batches(self) -> int:
        return sum(len(spy.digests) for spy in self.spies)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle")


@pytest.fixture
def config(fake: Bundle, tmp_path: Path) -> BatchConfig:
    """A finished run over 22 good tiles and two bad ones, to be brought up to date."""
    tiles = draw_folder(tmp_path / "study", TILES - 1)  # one of them is a bad one
    for name in BAD:
        (tiles / name).write_bytes(b"")
    (tmp_path / "out").mkdir()
    config = BatchConfig(tiles, tmp_path / "out" / "preds.csv", fake.root, batch_size=2, workers=1, hash_tiles=True)
    predict_folder(config, setup=Spied().setup())
    return replace(config, update=True)


def fresh(config: BatchConfig) -> Path:
    """The table of a whole new run over the tiles as they are now."""
    out = config.out.parent.parent / "whole" / config.out.name
    out.parent.mkdir(exist_ok=True)
    predict_folder(replace(config, out=out, update=False, overwrite=True), setup=Spied().setup())
    return out


def assert_as_fresh(config: BatchConfig) -> None:
    whole = fresh(config)
    for name in finished_files(config.out.name) - {f"{config.out.name}.run.json"}:
        assert config.out.with_name(name).read_bytes() == whole.with_name(name).read_bytes(), name
    assert beside(config.out) == finished_files(config.out.name)
    assert verify_table(config.out) == []
    made, new = record_of(config.out), record_of(whole)
    assert (made.found, made.ok, made.failures) == (new.found, new.ok, new.failures)


def change(root: Path) -> None:
    """Three tiles come, at the start, in the middle and at the end; two change; two go, a failed one among them."""
    for name in ("0_first.png", "slide_b/region 1/new.png", "zz_last.png"):
        (root / name).write_bytes(drawn_tile(len(name) + 900))
    changed = sorted(root.rglob("*.jpg"))[1:3]
    for number, path in enumerate(changed):
        path.write_bytes(drawn_tile(950 + number, ".jpg"))
    (root / BAD[0]).unlink()
    next(iter(sorted(root.glob("slide_b/region 2/*")))).unlink()


# ---- the same table as a new run's


@pytest.mark.parametrize("name", ["preds.csv.gz", "preds.jsonl", "preds.parquet"])
def test_only_what_is_new_or_changed_is_predicted(config: BatchConfig, name: str) -> None:
    config = replace(config, out=config.out.parent.parent / "formats" / name)
    config.out.parent.mkdir()
    predict_folder(config, setup=Spied().setup())  # where there is no table yet, an update makes it
    change(Path(config.tiles))
    spied = Spied()
    record = predict_folder(config, setup=spied.setup())
    assert record.table_changes == TableChanges(added=3, changed=2, removed=2)
    assert spied.batches == 3  # five tiles in batches of two
    assert (record.found, record.resumed) == (TILES + 1, TILES - 4)
    assert record_of(config.out) == record
    assert verify_tiles(config.out, Path(config.tiles)) == []
    assert_as_fresh(config)


def test_night_after_night(config: BatchConfig) -> None:
    for night in range(3):
        (Path(config.tiles) / f"slide_a/night_{night}.png").write_bytes(drawn_tile(800 + night))
        record = predict_folder(config, setup=Spied().setup())
        assert record.table_changes == TableChanges(1, 0, 0)
    assert_as_fresh(config)


def test_without_news_no_model_is_opened(config: BatchConfig) -> None:
    before = record_of(config.out)

    def refuse(_: SessionRequest) -> Chosen:
        raise AssertionError("a model is opened")

    assert predict_folder(config, setup=RunSetup(refuse)) == before
    assert beside(config.out) == FINISHED
    for name in ("0_first.png", *BAD):
        (Path(config.tiles) / name).unlink(missing_ok=True)
    record = predict_folder(config, setup=RunSetup(refuse))
    assert (record.table_changes, record.found, record.failed) == (TableChanges(0, 0, 2), TILES - 2, 0)
    assert_as_fresh(config)


def test_a_failed_row_whose_tile_is_as_it_was_is_kept(config: BatchConfig) -> None:
    (Path(config.tiles) / BAD[0]).write_bytes(drawn_tile(7))
    spied = Spied()
    record = predict_folder(config, setup=spied.setup())
    assert (record.table_changes, record.failures, spied.batches) == (TableChanges(0, 1, 0), {"empty": 1}, 1)
    assert_as_fresh(config)


def test_a_tile_of_the_same_size_that_was_written_again_has_changed(config: BatchConfig) -> None:
    path = Path(config.tiles) / "slide_a" / "tile_00001.jpg"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert predict_folder(config, setup=Spied().setup()).table_changes == TableChanges(0, 1, 0)


def test_after_a_retry(config: BatchConfig) -> None:
    (Path(config.tiles) / BAD[0]).write_bytes(drawn_tile(7))
    predict_folder(replace(config, update=False, retry_failures=True), setup=Spied().setup())
    before = config.out.read_bytes()
    predict_folder(config, setup=Spied().setup())
    assert config.out.read_bytes() == before  # what the retry predicted is known by its new stamp
    change(Path(config.tiles))
    predict_folder(config, setup=Spied().setup())
    assert_as_fresh(config)


def test_quality_flags_are_counted(config: BatchConfig) -> None:
    config = replace(config, out=config.out.with_name("flagged.csv"), judge_quality=True)
    (Path(config.tiles) / "blank.png").write_bytes(encoded(".png", np.full((40, 40, 3), 255, np.uint8)))
    predict_folder(config, setup=Spied().setup())
    change(Path(config.tiles))
    record = predict_folder(replace(config, judge_quality=False), setup=Spied().setup())
    assert record.flagged == sum(bool(row["quality"]) for row in read_table(config.out)) > 0


# ---- foreseen


def test_a_dry_run_says_what_the_update_would_do(config: BatchConfig, validate: Callable[[str, Any], None]) -> None:
    def foreseen(**changes: Any) -> tuple[TableChanges | None, Forecast]:
        told: list[Kept] = []
        asked = replace(config, **changes)
        said = forecast(asked, setup=replace(Spied().setup(), compared=told.append))
        validate("forecast", said.to_json())
        return told[0].changes if told else None, said

    size, before = config.out.stat().st_size, beside(config.out)
    header = config.out.read_bytes().index(b"\n") + 1
    news, nothing = foreseen()
    assert (news, nothing.found, nothing.kept, nothing.table_bytes) == (TableChanges(0, 0, 0), 0, TILES, size - header)
    assert next(forecast_lines(nothing, None)).startswith(f"0 tiles to predict; {TILES} rows are kept")
    (Path(config.tiles) / BAD[1]).unlink()
    dropped = foreseen()
    assert (dropped[0], dropped[1].found, dropped[1].kept) == (TableChanges(0, 0, 1), 0, TILES - 1)
    change(Path(config.tiles))
    news, some = foreseen()
    assert (news, some.found, some.sampled, some.kept) == (TableChanges(3, 2, 3), 5, 5, TILES - 5)
    assert size * 0.7 < some.table_bytes < size * 1.3
    retried = foreseen(update=False, retry_failures=True)
    assert (retried[0], retried[1].found, retried[1].kept) == (None, 2, TILES - 2)
    assert beside(config.out) == before
    everything = foreseen(out=config.out.with_name("none yet.csv"))
    assert (everything[0], everything[1].found, everything[1].kept) == (None, TILES, 0)


# ---- kills


def stopping(at: str) -> dict[str, Any]:
    """What kills a run at a step of its transaction, or once all tiles are listed."""

    def kill() -> NoReturn:
        raise Killed

    return {"once_listed": kill} if at == "listed" else {"stop_at": at, "error": Killed()}


@pytest.mark.parametrize("at", ["listed", "begin", "store", "assemble", "commit", "_place_stamps", "clear"])
def test_an_update_that_is_killed_goes_on(config: BatchConfig, at: str) -> None:
    change(Path(config.tiles))
    before = config.out.read_bytes()
    with pytest.raises(Killed):
        predict_folder(config, setup=Spied().setup(**stopping(at)))
    committed = at in ("_place_stamps", "clear")
    assert (config.out.read_bytes() == before) == (not committed)
    spied = Spied()
    predict_folder(config, setup=spied.setup())
    assert spied.batches == (0 if at in ("commit", "assemble") or committed else 3)
    assert_as_fresh(config)


def test_what_comes_after_an_update_began_waits_for_the_next(config: BatchConfig) -> None:
    change(Path(config.tiles))
    with pytest.raises(Killed):
        predict_folder(config, setup=Spied().setup(stop_at="assemble", error=Killed()))
    (Path(config.tiles) / "zzz.png").write_bytes(drawn_tile(1))
    (Path(config.tiles) / BAD[1]).unlink()  # of a row that is kept
    gone_on = predict_folder(config, setup=Spied().setup())
    assert (gone_on.found, gone_on.folder_changes) == (TILES + 1, FolderChanges(added=1, removed=1))
    assert predict_folder(config, setup=Spied().setup()).table_changes == TableChanges(1, 0, 1)
    assert_as_fresh(config)


def test_an_update_that_goes_on_over_unchanged_tiles_says_so(config: BatchConfig) -> None:
    change(Path(config.tiles))
    with pytest.raises(Killed):
        predict_folder(config, setup=Spied().setup(stop_at="assemble", error=Killed()))
    assert predict_folder(config, setup=Spied().setup()).folder_changes == FolderChanges(0, 0)


def test_a_run_that_goes_on_with_nothing_left_tells_no_rate(config: BatchConfig) -> None:
    change(Path(config.tiles))
    with pytest.raises(Killed):
        predict_folder(config, setup=Spied().setup(stop_at="assemble", error=Killed()))
    record = predict_folder(config, setup=Spied().setup())
    assert record.tiles_per_sec == 0
    assert not any("tiles/s" in line for line in summary_lines(record, config.out, verbose=False))


def test_the_finished_table_may_not_change_meanwhile(config: BatchConfig) -> None:
    change(Path(config.tiles))

    def alter(_done: int, _found: int) -> None:
        config.out.write_bytes(config.out.read_bytes().replace(b"ok", b"no", 1))

    with pytest.raises(OutputError, match="not the table any more"):
        predict_folder(config, setup=Spied().setup(), progress=alter)


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "named"), [({"batch_size": 3}, "batch_size"), ({"judge_quality": True}, "columns")]
)
def test_rows_are_only_added_as_the_others_were_made(config: BatchConfig, changes: dict[str, Any], named: str) -> None:
    before = config.out.read_bytes()
    with pytest.raises(ResumeMismatchError, match=rf"{named} .* can only be predicted as the others were"):
        predict_folder(replace(config, **changes), setup=Spied().setup())
    assert (config.out.read_bytes(), beside(config.out)) == (before, FINISHED)


def test_a_table_whose_stamps_are_not_known(config: BatchConfig) -> None:
    stamps = config.out.with_name("preds.csv.stamps")
    stamps.write_bytes(stamps.read_bytes()[8:])
    with pytest.raises(OutputError, match=r"stamps is not there as the run wrote it, .* --overwrite"):
        predict_folder(config, setup=Spied().setup())
    stamps.unlink()
    record = record_of(config.out)
    assert record.table is not None
    replace(record, table=replace(record.table, stamps_sha256=None)).save(config.out)
    with pytest.raises(OutputError, match=r"an earlier version, .* --overwrite"):
        predict_folder(config, setup=Spied().setup())
    assert not work_folder(config.out).exists()


def test_names_that_would_mean_otherwise(config: BatchConfig) -> None:
    """A slide that another folder has too by now has another name in a new run's rows."""
    tiles = Path(config.tiles) / "p1"
    tiles.mkdir()
    (tiles / "S1_x0_y0.png").write_bytes(drawn_tile(1))
    predict_folder(config, setup=Spied().setup())
    shutil.copytree(tiles, Path(config.tiles) / "p2")
    with pytest.raises(OutputError, match=r"other slides by now: .* --overwrite"):
        predict_folder(config, setup=Spied().setup())


def test_with_retry_failures(config: BatchConfig) -> None:
    with pytest.raises(UsageError, match="ask for one of them"):
        predict_folder(replace(config, retry_failures=True), setup=Spied().setup())


# ---- the command


def test_what_the_command_says(config: BatchConfig, validate: Callable[[str, Any], None]) -> None:
    def said(*options: str) -> str:
        arguments = [str(config.tiles), "--out", str(config.out), "--model", str(config.model), "--update", *options]
        done = CliRunner().invoke(main, arguments, obj=Spied().setup())
        assert done.exit_code == 3, done.stderr
        return done.stderr

    assert said().startswith(f"nothing new: the table has all {TILES} tiles as they are\n")
    change(Path(config.tiles))
    lines = said("--report", str(config.out.with_name("page.html")))
    assert f"3 new, 2 changed, 2 gone; {TILES - 4} rows are kept\n" in lines
    assert f"{TILES + 1} tiles: {TILES} predicted, 1 failed (1 empty), {TILES - 4} of them before" in lines
    (Path(config.tiles) / BAD[1]).unlink()
    (Path(config.tiles) / "zz_last.png").unlink()
    arguments = [str(config.tiles), "--out", str(config.out), "--model", str(config.model), "--update"]
    done = CliRunner().invoke(main, arguments, obj=Spied().setup())
    assert (done.exit_code, done.stderr.splitlines()[0]) == (0, f"0 new, 0 changed, 2 gone; {TILES - 1} rows are kept")
    validate("run", RunRecord.load(config.record_path).to_json())
