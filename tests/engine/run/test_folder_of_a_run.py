"""A table that is a folder: the rows of the single table, in files of so many; whole or not there, as any table."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli import compare, report, verify
from cervix_engine.errors import InferenceError, OutputError, OutputExistsError, UsageError
from cervix_engine.run.assembly.beside import record_of
from cervix_engine.run.assembly.chunks import chunks_of
from cervix_engine.run.assembly.merge import merge_shards
from cervix_engine.run.assembly.part import Part
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.config import check_place
from cervix_engine.run.journal import Shard
from cervix_engine.run.record import RunRecord
from cervix_engine.run.shards import ShardSize
from cervix_engine.run.verify import verify_table
from cervix_engine.table.formats import csv_lines
from cervix_engine.table.parquet.file import write_parquet
from cervix_engine.table.parquet.folder import MANIFEST, Manifest
from cervix_engine.table.reader import Table
from engine.run.support import (
    Killed,
    SpyBackend,
    beside,
    choose_fake,
    content,
    draw_folder,
    drawn_tile,
    finished_files,
    run_setup,
    work_folder,
)

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install '.[report]'")

TILES, ROWS = 23, 7  # rows a file: 7, 7, 7 and 2
BESIDE = finished_files("preds")


def setup(**options: Any) -> RunSetup:
    return run_setup(choose=choose_fake, shard=ShardSize(tiles=4), chunk_rows=ROWS, **options)


@pytest.fixture(scope="module")
def single(fake_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> BatchConfig:
    """A run whose table is one file."""
    folder = tmp_path_factory.mktemp("single")
    tiles = draw_folder(folder / "study", TILES - 1)
    (tiles / "bad.png").write_bytes(b"no tile")
    point: dict[str, Any] = {"abnormal_at": 0.4, "review_below": 0.6}
    config = BatchConfig(tiles, folder / "preds.csv", fake_bundle.root, batch_size=2, hash_tiles=True, **point)
    predict_folder(config, setup=setup())
    return config


@pytest.fixture
def config(single: BatchConfig, tmp_path: Path) -> BatchConfig:
    (tmp_path / "out").mkdir()
    return replace(single, out=tmp_path / "out" / "preds")


@pytest.fixture
def made(config: BatchConfig) -> Path:
    predict_folder(config, setup=setup())
    return config.out


def test_the_rows_of_the_single_table(
    single: BatchConfig, config: BatchConfig, validate: Callable[[str, Any], None]
) -> None:
    record = predict_folder(config, setup=setup())
    assert b"".join(csv_lines(config.out)) == single.out.read_bytes()
    assert list(Table.open(config.out).rows()) == list(Table.open(single.out).rows())
    assert sorted(path.name for path in config.out.iterdir()) == [
        MANIFEST,
        *(f"part-{number:05d}.parquet" for number in range(4)),
    ]
    manifest = Manifest.load(config.out)
    assert [file.rows for file in manifest.files] == [7, 7, 7, 2]
    document = json.loads((config.out / MANIFEST).read_text(encoding="utf-8"))
    validate("manifest", document)
    assert document["identity"] == record.to_json()["identity"]
    assert beside(config.out) == BESIDE
    assert RunRecord.load(config.record_path) == record
    assert record.decided == record_of(single.out).decided
    assert record.decided is not None
    assert record.decided.abnormal > 0
    for suffix in (".rows", ".stamps"):
        assert config.out.with_name(f"preds{suffix}").read_bytes() == Path(f"{single.out}{suffix}").read_bytes()
    assert verify_table(config.out) == []


def test_the_chunks_of_shards() -> None:
    shards = [Shard(first, 1, ok, {"empty": bad}, "") for first, ok, bad in ((4, 0, 1), (0, 3, 1), (2, 5, 0))]
    first, second, third = chunks_of(shards, 4)
    assert [
        [(piece.file[-8:], piece.first, piece.rows) for piece in chunk.pieces] for chunk in (first, second, third)
    ] == [
        [("0000.csv", 0, 4)],
        [("0002.csv", 0, 4)],
        [("0002.csv", 4, 1), ("0004.csv", 0, 1)],
    ]
    assert list(chunks_of([], 4)) == []


@pytest.mark.parametrize("at", [0, 5])
def test_a_run_that_failed_goes_on(config: BatchConfig, made: Path, at: int) -> None:
    whole, out = content(made), config.out.with_name("again")
    with pytest.raises(InferenceError):
        predict_folder(
            replace(config, out=out), setup=setup(around=lambda b: SpyBackend(b, fail={at: InferenceError("lost")}))
        )
    assert not out.exists()
    record = predict_folder(replace(config, out=out), setup=setup())
    assert record.resumed == min(TILES, 2 * at)
    assert content(out) == whole


def test_a_kill_before_the_commit(config: BatchConfig, made: Path) -> None:
    whole, out = content(made), config.out.with_name("again")
    with pytest.raises(Killed):
        predict_folder(replace(config, out=out), setup=setup(stop_at="commit", error=Killed()))
    assert not out.exists()
    assert content(work_folder(out) / "table") == whole
    assert predict_folder(replace(config, out=out), setup=setup()).resumed == TILES
    assert content(out) == whole
    assert not work_folder(out).exists()


def test_what_an_assembly_left_is_removed_before_the_next_one(config: BatchConfig) -> None:
    for _ in range(2):
        with pytest.raises(Killed):
            predict_folder(config, setup=setup(stop_at="commit", error=Killed()))
        names = {path.name for path in work_folder(config.out).glob("part-*")}
        assert names == set()
        (work_folder(config.out) / "part-00000.0123456789ab").touch()
        (work_folder(config.out) / "part-00000.0123456789ab.rows").touch()


def test_another_takes_its_place(config: BatchConfig, made: Path) -> None:
    with pytest.raises(OutputExistsError, match="--overwrite"):
        predict_folder(config, setup=setup())
    (new := Path(config.tiles) / "zz.png").write_bytes(drawn_tile(5))
    try:
        assert predict_folder(replace(config, overwrite=True), setup=setup()).found == TILES + 1
    finally:
        new.unlink()
    assert Manifest.load(made).rows == TILES + 1
    assert beside(made) == BESIDE
    assert verify_table(made) == []


@pytest.mark.parametrize("resume", [True, False])
def test_a_kill_between_the_two_renames_loses_no_table(config: BatchConfig, made: Path, resume: bool) -> None:
    whole = content(made)
    with pytest.raises(Killed):
        predict_folder(replace(config, overwrite=True), setup=setup(stop_at="commit", error=Killed()))
    made.rename(work_folder(made) / "replaced")  # the first of the two
    if resume:
        assert predict_folder(replace(config, overwrite=True), setup=setup()).resumed == TILES
    else:
        with pytest.raises(OutputExistsError):
            predict_folder(replace(config, resume=False), setup=setup())
    assert content(made) == whole
    assert RunRecord.load(config.record_path).found == TILES


def test_an_update_and_a_retry(config: BatchConfig, made: Path, tmp_path: Path) -> None:
    tiles = tmp_path / "study"
    shutil.copytree(config.tiles, tiles)
    own = replace(config, tiles=tiles, out=tmp_path / "own")
    predict_folder(own, setup=setup())
    (tiles / "zz.png").write_bytes(drawn_tile(5))
    (tiles / "bad.png").write_bytes(drawn_tile(6))
    record = predict_folder(replace(own, update=True), setup=setup())
    assert (record.found, record.resumed, record.failed) == (TILES + 1, TILES - 1, 0)
    fresh = replace(own, out=tmp_path / "fresh")
    predict_folder(fresh, setup=setup())
    assert list(csv_lines(own.out)) == list(csv_lines(fresh.out))
    (tiles / "bad.png").write_bytes(b"")
    predict_folder(replace(own, update=True), setup=setup())
    (tiles / "bad.png").write_bytes(drawn_tile(6))
    assert predict_folder(replace(own, retry_failures=True), setup=setup()).failed == 0
    assert list(csv_lines(own.out)) == list(csv_lines(fresh.out))
    assert verify_table(own.out) == []


def test_shards_are_joined(config: BatchConfig, made: Path, tmp_path: Path) -> None:
    shards = [tmp_path / "shard1", tmp_path / "shard2.csv"]
    for number, out in enumerate(shards, start=1):
        predict_folder(replace(config, out=out, shard=Part(number, 2)), setup=setup())
    merge_shards(tmp_path / "joined", shards)
    assert list(csv_lines(tmp_path / "joined")) == list(csv_lines(made))
    (shards[0] / "part-00000.parquet").write_bytes(b"altered")
    assert CliRunner().invoke(verify.main, [str(shards[0])]).exit_code == 1
    with pytest.raises(Exception, match="shard1 is not as its run wrote it"):
        merge_shards(tmp_path / "again", shards)


# ---- verify


def test_rows_that_were_altered_are_named(made: Path) -> None:
    second = made / "part-00001.parquet"
    header, *rows = (line.decode().rstrip("\n").split(",") for line in csv_lines(second))
    rows[2][1] = "elsewhere"
    write_parquet(second, header, iter([*rows[:4], rows[5], rows[4], *rows[6:]]))
    found = {(finding.kind, finding.line) for finding in verify_table(made)}
    assert {("file", None), ("edited", 11), ("missing", None)} < found
    assert ("moved", 13) in found or ("moved", 14) in found
    done = CliRunner().invoke(verify.main, [str(made)])
    assert done.exit_code == 1
    assert "file: part-00001.parquet: it is not as the run wrote it" in done.stderr


def test_files_that_are_missing_or_foreign_are_named(made: Path) -> None:
    (made / "part-00003.parquet").unlink()
    shutil.copy(made / "part-00000.parquet", made / "part-00004.parquet")
    (made / "part-00002.parquet").write_bytes(b"")
    assert [(finding.kind, finding.message.partition(":")[0]) for finding in verify_table(made)][:3] == [
        ("file", "part-00002.parquet"),
        ("file", "part-00003.parquet"),
        ("file", "part-00004.parquet"),
    ]


def test_any_byte_that_was_altered_is_named(made: Path) -> None:
    part = made / "part-00001.parquet"
    data = part.read_bytes()
    for at in range(0, len(data), 61):
        part.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        first, *others = verify_table(made)
        assert first.message == "part-00001.parquet: it is not as the run wrote it"
        assert {finding.kind for finding in others} <= {"unreadable", "edited", "missing"}
        with suppress(UsageError):  # and no other error
            list(Table.open(made).rows())


def test_readers_name_the_file_that_is_missing(made: Path) -> None:
    (made / "part-00003.parquet").unlink()
    with pytest.raises(UsageError, match=r"cannot read .*part-00003\.parquet: No such file"):
        list(Table.open(made).rows())


def test_nothing_else_is_made_among_the_files_of_a_table(made: Path) -> None:
    table, inside = str(made), str(made / "x.csv")
    for main, arguments in ((report.main, [table, "--summary", inside]), (compare.main, [table, table, "-o", inside])):
        done = CliRunner().invoke(main, arguments)
        assert (done.exit_code, f"would lie in {table}, which is read" in done.stderr) == (2, True)
    assert verify_table(made) == []


@pytest.mark.parametrize("name", ["notes.txt", "more.PARQUET", "year=2026"])
def test_whatever_other_programs_would_read_is_named(made: Path, name: str) -> None:
    (made / "_SUCCESS").touch()
    assert verify_table(made) == []
    (made / name).mkdir()
    assert [finding.message for finding in verify_table(made)] == [f"{name}: the manifest does not list it"]


@pytest.mark.parametrize("text", ["{}", ""])
def test_a_manifest_that_was_altered_is_named(made: Path, text: str) -> None:
    data = (made / MANIFEST).read_text(encoding="utf-8")
    (made / MANIFEST).write_text(data.replace('"rows": 7', '"rows":  7'), encoding="utf-8")
    assert [finding.kind for finding in verify_table(made)] == ["bytes"]
    (made / MANIFEST).write_text(text, encoding="utf-8")
    assert [finding.kind for finding in verify_table(made)] == ["unreadable"]


# ---- what may lie there


@pytest.mark.parametrize("hidden", [False, True])
def test_an_empty_folder_may_be_there(config: BatchConfig, hidden: bool) -> None:
    config.out.mkdir()
    if hidden:
        (config.out / ".DS_Store").touch()  # as file managers leave it
    assert predict_folder(config, setup=setup()).found == TILES
    assert record_of(config.out).status == "done"


def test_a_link_to_a_folder_makes_room(config: BatchConfig, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    config.out.symlink_to(elsewhere)
    predict_folder(config, setup=setup())
    assert not config.out.is_symlink()
    assert list(elsewhere.iterdir()) == []
    assert verify_table(config.out) == []


def test_a_folder_of_other_files_is_never_replaced(config: BatchConfig) -> None:
    config.out.mkdir()
    (config.out / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="more than a table, thesis"):
        predict_folder(replace(config, overwrite=True), setup=setup())
    assert (config.out / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["thesis.txt", ".git"])
def test_what_was_put_into_a_table_is_never_replaced(config: BatchConfig, made: Path, name: str) -> None:
    (made / ".DS_Store").touch()  # nobody's
    predict_folder(replace(config, overwrite=True), setup=setup())
    (made / name).write_text("mine")
    with pytest.raises(UsageError, match=re.escape(name)):
        predict_folder(replace(config, overwrite=True), setup=setup())
    assert (made / name).read_text() == "mine"


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_put_there_while_the_run_goes_on_is_never_replaced(config: BatchConfig, overwrite: bool) -> None:
    mine = config.out / "thesis.txt"
    if overwrite:
        predict_folder(config, setup=setup())

    def put() -> None:
        config.out.mkdir(exist_ok=True)
        mine.write_text("mine")

    with pytest.raises(OutputError, match=r"more than a table by now, thesis\.txt"):
        predict_folder(replace(config, overwrite=overwrite), setup=setup(once_listed=put))
    assert mine.read_text() == "mine"
    mine.unlink()
    assert predict_folder(replace(config, overwrite=overwrite), setup=setup()).resumed == TILES
    assert verify_table(config.out) == []
    assert beside(config.out) == BESIDE


@pytest.mark.parametrize("name", [".gitkeep", ".DS_Store"])
def test_an_empty_folder_with_a_hidden_file(config: BatchConfig, name: str) -> None:
    config.out.mkdir()
    (config.out / name).touch()
    if name == ".DS_Store":
        assert predict_folder(config, setup=setup()).found == TILES
        assert verify_table(config.out) == []
    else:
        with pytest.raises(UsageError, match=r"more than a table, \.gitkeep"):
            predict_folder(config, setup=setup())


def test_a_link_to_nothing_makes_room(config: BatchConfig) -> None:
    config.out.symlink_to("nowhere")
    predict_folder(config, setup=setup())
    assert not config.out.is_symlink()
    assert verify_table(config.out) == []


@pytest.mark.parametrize("name", ["", ".", "..", "out/.."])
def test_a_path_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="names no table: add a name"):
        check_place(Path(name))


def test_a_mount_point_is_refused() -> None:
    with pytest.raises(UsageError, match="is a mount point"):
        check_place(Path("/proc"))


def test_a_file_of_that_name_is_never_replaced(config: BatchConfig) -> None:
    config.out.write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        predict_folder(replace(config, overwrite=True), setup=setup())
    assert config.out.read_text() == "mine"
