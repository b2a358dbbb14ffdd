"""Shards of one listing, in any order and format, are joined into the table of an undivided run, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main as batch
from cervix_engine.cli.merge import main as merge
from cervix_engine.cli.report import main as report
from cervix_engine.errors import InferenceError, OutputError, ResumeMismatchError, UsageError
from cervix_engine.run.assembly.beside import record_of
from cervix_engine.run.assembly.merge import merge_shards
from cervix_engine.run.assembly.part import Part
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.record import RunRecord
from cervix_engine.run.shards import ShardSize
from cervix_engine.run.transaction import State, TableTransaction
from cervix_engine.run.verify import verify_table
from engine.run.support import (
    FINISHED,
    Killed,
    SpyBackend,
    beside,
    choose_fake,
    draw_folder,
    finished_files,
    make_fake_bundle,
    run_setup,
    work_folder,
)

pytestmark = pytest.mark.timeout(120)

TILES, BATCH, OF = 41, 2, 4  # 21 batches: shards of 5, 5, 5 and 6
SETUP = run_setup(choose=choose_fake, shard=ShardSize(4))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> BatchConfig:
    """A finished undivided run over 40 good tiles and a bad one."""
    folder = tmp_path_factory.mktemp("study")
    tiles = draw_folder(folder / "tiles", TILES - 1)
    (tiles / "slide_a" / "bad.png").write_bytes(b"")
    (folder / "whole").mkdir()
    bundle = make_fake_bundle(folder / "bundle")
    config = BatchConfig(
        tiles, folder / "whole" / "preds.csv", bundle.root, batch_size=BATCH, workers=1, hash_tiles=True
    )
    predict_folder(config, setup=SETUP)
    return config


@pytest.fixture(scope="module")
def shards(study: BatchConfig) -> list[Path]:
    """The four shards, predicted in another order, the second one stopped and gone on with."""
    folder = study.out.parent.parent / "shards"
    folder.mkdir()
    for number, suffix in ((3, ".csv"), (1, ".parquet"), (4, ".csv.gz")):
        predict_folder(replace(study, out=folder / f"{number}{suffix}", shard=Part(number, OF)), setup=SETUP)
    second = replace(study, out=folder / "2.jsonl", shard=Part(2, OF))
    fail: dict[int, BaseException] = {3: InferenceError("out of memory")}
    with pytest.raises(InferenceError):
        predict_folder(
            second,
            setup=run_setup(choose=choose_fake, around=lambda b: SpyBackend(b, fail=fail), shard=ShardSize(4)),
        )
    assert predict_folder(second, setup=SETUP).resumed == 6
    return [folder / name for name in ("1.parquet", "2.jsonl", "3.csv", "4.csv.gz")]


@pytest.fixture
def copies(shards: Sequence[Path], tmp_path: Path) -> list[Path]:
    """Copies to alter."""
    shutil.copytree(shards[0].parent, tmp_path / "shards")
    return [tmp_path / "shards" / shard.name for shard in shards]


def merged(out: Path, shards: Sequence[Path], *options: str) -> Result:
    out.parent.mkdir(exist_ok=True)
    return CliRunner().invoke(merge, [str(out), *map(str, shards), *options])


def test_no_shard_is_replaced_by_the_joined_table(copies: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copies[0].parent)
    before = copies[0].read_bytes()
    for out in (copies[0], tmp_path / "link" / copies[0].name):
        done = merged(out, copies, "--overwrite")
        assert (done.exit_code, f"{out} is read, too" in done.stderr) == (2, True)
    assert copies[0].read_bytes() == before


# ---- the same table


def test_shards_in_any_order_are_the_undivided_table(study: BatchConfig, shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "preds.csv"
    done = merged(out, [shards[2], shards[0], shards[3], shards[1]])
    assert (done.exit_code, done.stderr.splitlines()[0]) == (
        3,
        f"4 shards, {TILES} tiles: {TILES - 1} predicted, 1 failed (1 empty)",
    )
    assert beside(out) == FINISHED
    for name in ("preds.csv", "preds.csv.rows", "preds.csv.stamps"):
        assert out.with_name(name).read_bytes() == study.out.with_name(name).read_bytes()
    made, whole = record_of(out), record_of(study.out)
    assert (made.identity, made.table, made.backend) == (whole.identity, whole.table, whole.backend)
    assert (made.found, made.ok, made.failures, made.ignored) == (TILES, TILES - 1, {"empty": 1}, whole.ignored)
    assert [shard.shard for shard in made.shards] == ["1/4", "2/4", "3/4", "4/4"]
    assert sum(shard.found for shard in made.shards) == TILES
    assert verify_table(out) == []


@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl", ".parquet"])
def test_every_format(study: BatchConfig, shards: list[Path], tmp_path: Path, suffix: str) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / "out" / f"preds{suffix}"
    predict_folder(replace(study, out=whole), setup=SETUP)
    assert merged(out, shards).exit_code == 3
    assert out.read_bytes() == whole.read_bytes()
    assert beside(out) == finished_files(out.name)
    assert verify_table(out) == []


def test_a_merged_table_is_as_good_as_any(study: BatchConfig, shards: list[Path], tmp_path: Path) -> None:
    tiles = tmp_path / "tiles"
    shutil.copytree(study.tiles, tiles)
    # The same folder by name: a run remembers where its tiles were.
    out = tmp_path / "out" / "preds.csv"
    merged(out, shards)
    page = CliRunner().invoke(report, [str(out), "--out", str(tmp_path / "report.html")])
    assert page.exit_code == 0, page.stderr
    again = predict_folder(replace(study, out=out, retry_failures=True), setup=SETUP)
    assert (again.found, again.failures) == (TILES, {"empty": 1})
    assert out.read_bytes() == study.out.read_bytes()
    assert predict_folder(replace(study, out=out, update=True), setup=SETUP) == again  # nothing is new


def test_a_shard_is_a_table_of_its_own(shards: list[Path], validate: Callable[[str, Any], None]) -> None:
    for number, shard in enumerate(shards, start=1):
        record = record_of(shard)
        assert record.identity.shard == f"{number}/{OF}"
        assert verify_table(shard) == []
        validate("run", record.to_json())
    found = [record_of(shard).found for shard in shards]
    assert found == [10, 10, 10, 11]


def test_the_record_is_of_the_schema(shards: list[Path], tmp_path: Path, validate: Callable[[str, Any], None]) -> None:
    record = merge_shards(tmp_path / "preds.csv", shards)
    validate("run", record.to_json())
    assert RunRecord.load(tmp_path / "preds.csv.run.json") == record


# ---- refusals


def refused(out: Path, shards: Sequence[Path]) -> str:
    """What is said of shards that are refused; nothing was written."""
    done = merged(out, shards)
    assert done.exit_code in (1, 2)
    assert beside(out) == set()
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_missing_and_doubled_shards(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "preds.csv"
    assert "missing: shards 2/4, 4/4" in refused(out, [shards[0], shards[2]])
    said = refused(out, [*shards, shards[1]])
    assert "shard 2/4 is there twice" in said


def test_an_altered_shard(copies: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "preds.csv"
    data = copies[2].read_bytes()
    copies[2].write_bytes(data.replace(b",ok,", b",no,", 1))
    assert "3.csv is not as its run wrote it" in refused(out, copies)
    copies[2].write_bytes(data)
    stamps = copies[0].with_name("1.parquet.stamps")
    stamps.write_bytes(stamps.read_bytes()[:-8])
    assert "1.parquet.stamps is not there as its run wrote it" in refused(out, copies)


def test_what_is_no_finished_shard(study: BatchConfig, copies: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "preds.csv"
    assert "preds.csv is no shard" in refused(out, [*copies[1:], study.out])
    assert "nothing.csv is no finished shard" in refused(out, [*copies[1:], tmp_path / "nothing.csv"])
    unfinished = replace(study, out=tmp_path / "shards" / "1.csv", shard=Part(1, OF))
    with pytest.raises(KeyboardInterrupt):
        predict_folder(unfinished, setup=run_setup(choose=choose_fake, stop_at="assemble"))
    assert "1.csv is no finished shard" in refused(out, [unfinished.out, *copies[1:]])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 3}, "batch_size 2, this one has 3"),
        ({"shard": Part(1, 5)}, "is shard 1/5"),
        ({"judge_quality": True}, "columns"),
        ({"slide": "{slide}/*"}, "slide folder"),
    ],
)
def test_a_foreign_shard(
    study: BatchConfig, shards: list[Path], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    foreign = replace(study, **{"shard": Part(1, OF), "out": tmp_path / "foreign.csv", **changes})
    predict_folder(foreign, setup=SETUP)
    said = refused(tmp_path / "out" / "preds.csv", [*shards[1:], foreign.out])
    assert named in said
    assert "foreign.csv" in said


def test_a_shard_of_another_listing_or_bundle(study: BatchConfig, shards: list[Path], tmp_path: Path) -> None:
    foreign = replace(study, shard=Part(1, OF), out=tmp_path / "foreign.csv")
    added = Path(study.tiles) / "zz.png"
    shutil.copy(Path(study.tiles) / "tile_00004.png", added)
    try:
        predict_folder(foreign, setup=SETUP)
    finally:
        added.unlink()
    assert "listing_sha256" in refused(tmp_path / "out" / "preds.csv", [foreign.out, *shards[1:]])


def test_a_place_that_is_taken(study: BatchConfig, shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "preds.csv"
    with pytest.raises(KeyboardInterrupt):
        predict_folder(replace(study, out=out), setup=run_setup(choose=choose_fake, stop_at="assemble"))
    with pytest.raises(OutputError, match="a run on its way"):
        merge_shards(out, shards)
    predict_folder(replace(study, out=out), setup=SETUP)
    done = merged(out, shards)
    assert done.exit_code == 2, done.stderr
    assert merged(out, shards, "--overwrite").exit_code == 3


# ---- a kill


@pytest.mark.parametrize("at", ["_save", "commit", "_place_stamps", "clear"])
def test_a_merge_that_is_killed_is_done_again(study: BatchConfig, shards: list[Path], tmp_path: Path, at: str) -> None:
    out = tmp_path / "out" / "preds.csv"
    out.parent.mkdir()

    def stop(*_: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        merge_shards(out, shards, open_table=type("KilledTable", (TableTransaction,), {at: stop}))
    assert out.exists() == (at in ("_place_stamps", "clear"))
    again = merged(out, shards, "--overwrite")
    assert again.exit_code == 3, again.stderr
    assert beside(out) == FINISHED
    assert out.with_name("preds.csv.stamps").read_bytes() == study.out.with_name("preds.csv.stamps").read_bytes()
    assert out.read_bytes() == study.out.read_bytes()


# ---- how a listing is cut


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "a/b", "1.5/4", "٣/8"])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(UsageError, match="expected such as 3/8"):
        Part.parse(text)


@pytest.mark.parametrize(("of", "count"), [(1, 1), (3, 3), (8, 451), (7, 100)])
def test_parts_follow_each_other_and_differ_by_one_batch_at_most(of: int, count: int) -> None:
    parts = [Part.parse(f"{number}/{of}").batches(count) for number in range(1, of + 1)]
    assert [index for part in parts for index in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_shards_than_batches(study: BatchConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="21 batches cannot be cut into 22 shards"):
        predict_folder(replace(study, out=tmp_path / "one.csv", shard=Part(1, 22)), setup=SETUP)
    assert not work_folder(tmp_path / "one.csv").exists()


def test_options_that_do_not_go_with_a_shard(study: BatchConfig, shards: list[Path], tmp_path: Path) -> None:
    shard = replace(study, out=tmp_path / "one.csv", shard=Part(1, OF))
    for changes in ({"batch_size": "auto"}, {"retry_failures": True}, {"update": True}):
        with pytest.raises(UsageError, match="--shard"):
            predict_folder(replace(shard, **changes), setup=SETUP)
    with pytest.raises(UsageError, match="shard 3/4: join all of them with cervix-merge"):
        predict_folder(replace(study, out=shards[2], retry_failures=True), setup=SETUP)


def test_another_shard_is_not_gone_on_with(study: BatchConfig, tmp_path: Path) -> None:
    one = replace(study, out=tmp_path / "one.csv", shard=Part(1, OF))
    with pytest.raises(KeyboardInterrupt):
        predict_folder(one, setup=run_setup(choose=choose_fake, stop_at="assemble"))
    for other in (Part(2, OF), None):
        with pytest.raises(ResumeMismatchError, match="shard 1/4, this one has"):
            predict_folder(replace(one, shard=other), setup=SETUP)
    assert TableTransaction(one.out).load() is State.PARTIAL
    assert predict_folder(one, setup=SETUP).resumed == 10


def test_the_command_line(bundle: Bundle, tmp_path: Path) -> None:
    tiles = draw_folder(tmp_path / "tiles", 9)
    options = ["--model", str(bundle.root), "-b", "2", "-j", "1"]
    for number in (1, 2):
        out = str(tmp_path / f"{number}.csv")
        done = CliRunner().invoke(batch, [str(tiles), "--out", out, "--shard", f"{number}/2", *options])
        assert done.exit_code == 0, done.stderr
    assert CliRunner().invoke(batch, [str(tiles), "--out", str(tmp_path / "preds.csv"), *options]).exit_code == 0
    assert merged(tmp_path / "joined.csv", [tmp_path / "1.csv", tmp_path / "2.csv"]).exit_code == 0
    assert (tmp_path / "joined.csv").read_bytes() == (tmp_path / "preds.csv").read_bytes()
    wrong = CliRunner().invoke(batch, [str(tiles), "--out", str(tmp_path / "x.csv"), "--shard", "3/2", *options])
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
