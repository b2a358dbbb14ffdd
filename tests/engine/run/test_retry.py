"""`--retry-failures` predicts the failed rows of a finished table again, and leaves every other row as it is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cervix_engine.backends import Backend
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.cli.batch import main
from cervix_engine.errors import CervixError, OutputError, ResumeMismatchError, UsageError
from cervix_engine.run.assembly.beside import record_of
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.budget import FailureBudget
from cervix_engine.run.record import RunRecord
from cervix_engine.run.shards import ShardSize
from cervix_engine.run.verify import verify_table, verify_tiles
from engine.run.support import (
    FINISHED,
    Killed,
    SpyBackend,
    beside,
    draw_folder,
    drawn_tile,
    make_bundle,
    read_table,
    run_setup,
    tiny_onnx,
)

pytestmark = pytest.mark.timeout(120)

BAD = ("slide_a/broken.png", "tile_00004.png", "zz=1.png")
TILES = 26


@pytest.fixture
def config(bundle: Bundle, tmp_path: Path) -> BatchConfig:
    """A finished run over 23 good tiles and three bad ones, two of which have been mended since."""
    tiles = draw_folder(tmp_path / "study", 24)
    for name in BAD:
        (tiles / name).write_bytes(b"")
    (tmp_path / "out").mkdir()
    config = BatchConfig(tiles=tiles, out=tmp_path / "out" / "preds.csv", model=bundle.root, batch_size=2)
    predict_folder(config)
    for name in BAD[:2]:
        (tiles / name).write_bytes(drawn_tile(900))
    return replace(config, retry_failures=True)


def undisturbed(config: BatchConfig) -> bytes:
    """The table of a whole new run over the tiles as they are now."""
    out = config.out.parent.parent / "whole.csv"
    predict_folder(replace(config, out=out, retry_failures=False))
    return out.read_bytes()


@dataclass
class Spied:
    """A setup with shards of a batch, whose backends are spied on."""

    spies: list[SpyBackend] = field(default_factory=list)

    @property
    def setup(self) -> RunSetup:
        return run_setup(around=self._spied, shard=ShardSize(1))

    def _spied(self, backend: Backend) -> SpyBackend:
        self.spies.append(SpyBackend(backend))
        return self.spies[-1]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_only_failed_rows_are_predicted_again(config: BatchConfig) -> None:
    before, spied = config.out.read_bytes().splitlines(), Spied()
    report = predict_folder(config, setup=spied.setup)
    assert len(spied.spies[0].digests) == 2  # three tiles in batches of two
    after = config.out.read_bytes().splitlines()
    changed = [new.split(b",")[0].decode() for old, new in zip(before, after, strict=True) if old != new]
    assert changed == sorted(BAD[:2])
    assert (report.found, report.ok, report.failures) == (TILES, TILES - 1, {"empty": 1})
    assert record_of(config.out) == report
    assert verify_table(config.out) == []
    assert beside(config.out) == FINISHED
    assert config.out.read_bytes() == undisturbed(config)


def test_what_fails_again_keeps_a_row(config: BatchConfig) -> None:
    (Path(config.tiles) / BAD[0]).unlink()
    (Path(config.tiles) / BAD[1]).write_bytes(b"no tile")
    report = predict_folder(config)
    assert report.failures == {"empty": 1, "unknown_format": 1, "unreadable": 1}
    rows = {row["path"]: row["error"].partition(":")[0] for row in read_table(config.out) if row["error"]}
    assert rows == dict(zip(BAD, ["unreadable", "unknown_format", "empty"], strict=True))


def test_a_tile_that_leads_out_of_the_folder_by_now_is_refused(config: BatchConfig, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.png").write_bytes(drawn_tile(1))
    (Path(config.tiles) / BAD[0]).unlink()
    (Path(config.tiles) / BAD[0]).symlink_to(tmp_path / "elsewhere.png")
    assert predict_folder(config).failures == {"changed": 1, "empty": 1}


def test_again_and_again(config: BatchConfig) -> None:
    predict_folder(config)
    (Path(config.tiles) / BAD[2]).write_bytes(drawn_tile(901))
    report = predict_folder(config)
    assert (report.ok, report.failed) == (TILES, 0)
    whole = config.out.read_bytes()
    assert whole == undisturbed(config)
    assert predict_folder(config) == report  # nothing is left to do
    assert config.out.read_bytes() == whole


def test_with_hashes(config: BatchConfig) -> None:
    predict_folder(replace(config, retry_failures=False, overwrite=True, hash_tiles=True))
    (Path(config.tiles) / BAD[2]).write_bytes(drawn_tile(901))
    predict_folder(config)  # --hash is the table's own
    assert verify_tiles(config.out, config.tiles) == []
    assert {row["status"] for row in read_table(config.out)} == {"ok"}


# ---- refusals


def test_without_a_finished_table(config: BatchConfig) -> None:
    with pytest.raises(UsageError, match="no finished table"):
        predict_folder(replace(config, out=config.out.with_name("other.csv")))
    config.record_path.unlink()
    with pytest.raises(UsageError, match=r"nothing says how .* was made"):
        predict_folder(config)


def test_an_altered_table(config: BatchConfig) -> None:
    altered = config.out.read_bytes().replace(b"ok", b"no", 1)
    config.out.write_bytes(altered)
    with pytest.raises(OutputError, match="not as its run wrote it: cervix-verify says where"):
        predict_folder(config)
    assert config.out.read_bytes() == altered


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"batch_size": 3}, "batch_size 2, this one has 3"),
        ({"precision": "fp16"}, "precision fp32, this one has fp16"),
        ({"hash_tiles": True}, "columns"),
    ],
    ids=str,
)
def test_another_run_s_options(config: BatchConfig, change: dict[str, Any], name: str) -> None:
    table = config.out.read_bytes()
    with pytest.raises(ResumeMismatchError, match=f"the table was made with {name}"):
        predict_folder(replace(config, **change))
    assert config.out.read_bytes() == table
    assert beside(config.out) == FINISHED


def test_another_bundle_or_folder(config: BatchConfig, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", model=tiny_onnx()).root
    (other / "note.txt").write_text("another bundle")
    seal(other)
    with pytest.raises(ResumeMismatchError, match="bundle_digest"):
        predict_folder(replace(config, model=other))
    shutil.copytree(config.tiles, tmp_path / "copy")
    with pytest.raises(ResumeMismatchError, match="the table was made with root"):
        predict_folder(replace(config, tiles=tmp_path / "copy"))
    assert beside(config.out) == FINISHED


def test_the_budget_counts_the_whole_table(config: BatchConfig) -> None:
    with pytest.raises(CervixError, match="1 of 26 tiles failed"):
        predict_folder(replace(config, budget=FailureBudget(count=0)))


# ---- stopped in between


def test_a_retry_goes_on_where_it_stopped(config: BatchConfig) -> None:
    first, spied = record_of(config.out), Spied()
    table = config.out.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        predict_folder(config, progress=interrupt, setup=spied.setup)
    assert config.out.read_bytes() == table
    assert record_of(config.out) == first
    assert verify_table(config.out) == []
    assert RunRecord.load(config.record_path).ok >= first.ok
    report = predict_folder(config, setup=spied.setup)
    assert len(spied.spies[-1].digests) == 1
    assert report.resumed == first.ok + 2
    assert config.out.read_bytes() == undisturbed(config)


def test_a_stopped_retry_and_a_run_are_not_mixed_up(config: BatchConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_folder(config, progress=interrupt)
    whole = replace(config, retry_failures=False, overwrite=True)
    with pytest.raises(ResumeMismatchError, match=r"retry_of [0-9a-f]{64}, this one has None"):
        predict_folder(whole)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(replace(whole, resume=False), progress=interrupt)
    with pytest.raises(ResumeMismatchError, match="retry_of None, this one has"):
        predict_folder(config)
    assert predict_folder(replace(config, resume=False)).failed == 1


def test_a_table_that_was_exchanged_meanwhile_is_not_mended(config: BatchConfig) -> None:
    def exchange(*_: int) -> None:
        config.out.write_bytes(b"another table")

    with pytest.raises(OutputError, match="not the table any more"):
        predict_folder(config, progress=exchange)
    assert config.out.read_bytes() == b"another table"


@pytest.mark.parametrize("method", ["assemble", "commit", "clear"])
@pytest.mark.parametrize("error", [Killed(), KeyboardInterrupt()], ids=repr)
def test_a_stop_near_the_end(config: BatchConfig, method: str, error: BaseException) -> None:
    with pytest.raises(type(error)):
        predict_folder(config, setup=run_setup(shard=ShardSize(1), stop_at=method, error=error))
    assert verify_table(config.out) == []
    report = predict_folder(config)
    assert (report.ok, report.failed, report.status) == (TILES - 1, 1, "done")
    assert config.out.read_bytes() == undisturbed(config)
    assert beside(config.out) == FINISHED


def test_the_command(config: BatchConfig) -> None:
    arguments = [str(config.tiles), "-o", str(config.out), "--model", str(config.model)]
    assert CliRunner().invoke(main, arguments).exit_code == 2
    done = CliRunner().invoke(main, [*arguments, "--retry-failures"])
    assert done.exit_code == 3, done.output
    assert "26 tiles: 25 predicted, 1 failed (1 empty)" in done.stderr
    (Path(config.tiles) / BAD[2]).write_bytes(drawn_tile(901))
    assert CliRunner().invoke(main, [*arguments, "--retry-failures"]).exit_code == 0
    assert CliRunner().invoke(main, [*arguments, "--retry-failures"]).exit_code == 0
