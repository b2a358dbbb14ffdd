"""The driver and its workers, all in this process: the table of a local run, whatever gets lost on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.cli.batch_messages import choice_lines, worker_line
from cervix_engine.cluster.driver import predict_on
from cervix_engine.cluster.worker import Done, Opened
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import (
    CervixError,
    ContractError,
    FailureBudgetExceeded,
    InferenceError,
    OutputError,
    ResumeMismatchError,
)
from cervix_engine.run.assembly.beside import record_of
from cervix_engine.run.assembly.chunks import WrittenChunk
from cervix_engine.run.assembly.part import Part
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.budget import FailureBudget
from cervix_engine.run.record import NodeRecord, RunRecord
from cervix_engine.run.session import Choice, Chosen, SessionRequest
from cervix_engine.run.transaction import TableTransaction
from cervix_engine.run.verify import verify_table
from cervix_engine.table.formats import csv_lines
from engine.cluster.local_pool import LostError, local_pool
from engine.drift.watched import reference
from engine.run.support import (
    FINISHED,
    SpyBackend,
    beside,
    choose_fake,
    content,
    draw_folder,
    drawn_tile,
    finished_files,
    make_fake_bundle,
    run_setup,
    threads_end,
    work_folder,
)

pytestmark = pytest.mark.timeout(120)

TILES = 61


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BatchConfig:
    """A local run over 60 good tiles and a bad one, and its table."""
    folder = tmp_path_factory.mktemp("study")
    tiles = draw_folder(folder / "tiles", TILES - 1)
    (tiles / "slide_a" / "bad.png").write_bytes(b"no tile")
    make_fake_bundle(folder / "bundle")
    reference().save(folder / "bundle")
    model = seal(folder / "bundle").root
    config = BatchConfig(tiles, folder / "local.csv", model, batch_size=2, workers=1, hash_tiles=True)
    predict_folder(config, setup=run_setup(choose=choose_fake))
    return config


def on_workers(choose: Callable[[SessionRequest], Chosen] = choose_fake, **options: Any) -> RunSetup:
    return RunSetup(choose, predict=predict_on(local_pool(**options)))


def at(config: BatchConfig, tmp_path: Path) -> BatchConfig:
    (tmp_path / "out").mkdir()
    return replace(config, out=tmp_path / "out" / "preds.csv")


def assert_as_local(config: BatchConfig, here: BatchConfig) -> None:
    for suffix in ("", ".rows", ".stamps"):
        ours, local = (Path(f"{item.out}{suffix}") for item in (here, config))
        assert ours.read_bytes() == local.read_bytes()
    assert beside(here.out) == FINISHED
    made, local_made = record_of(here.out), record_of(config.out)
    assert (made.identity, made.table) == (local_made.identity, local_made.table)
    assert made.drift is not None
    assert made.drift == local_made.drift
    assert verify_table(here.out) == []
    assert threads_end()


@pytest.mark.parametrize("block_tiles", [1, 8, 1000])
def test_the_table_of_a_local_run(
    config: BatchConfig, tmp_path: Path, block_tiles: int, validate: Callable[[str, Any], None]
) -> None:
    here, seen = at(config, tmp_path), []
    record = predict_folder(
        here, progress=lambda *counts: seen.append(counts), setup=on_workers(block_tiles=block_tiles)
    )
    assert_as_local(config, here)
    assert (record.found, record.failures, record.resumed) == (TILES, {"unknown_format": 1}, 0)
    assert sum(node.tiles for node in record.nodes) == TILES
    assert {node.host for node in record.nodes} <= {"node0", "node1"}
    assert {stage.stage: stage.tiles for stage in record.stages}["infer"] == TILES
    assert seen[-1] == (TILES, TILES)
    validate("run", record.to_json())
    assert RunRecord.load(here.record_path) == record


def test_blocks_that_are_lost_are_predicted_again(config: BatchConfig, tmp_path: Path) -> None:
    here, dice, lost = at(config, tmp_path), random.Random(3), 0

    def lose(_: Done | WrittenChunk) -> None:
        nonlocal lost
        if dice.random() < 0.5 and lost < 20:
            lost += 1
            raise LostError

    predict_folder(here, setup=on_workers(lose=lose, block_tiles=4))
    assert lost > 5
    assert_as_local(config, here)


def test_a_driver_that_is_lost_goes_on(config: BatchConfig, tmp_path: Path) -> None:
    here = at(config, tmp_path)

    def stop(done: int, _found: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_folder(here, progress=stop, setup=on_workers(workers=1))
    # What a lost worker had written, and nobody had journalled.
    (work_folder(here.out) / "shard-000000028.csv.0123456789ab").write_bytes(b"half a r")
    record = predict_folder(here, setup=on_workers())
    assert 20 < record.resumed < TILES
    assert record.nodes != ()
    assert_as_local(config, here)


def test_a_run_may_go_on_elsewhere(config: BatchConfig, tmp_path: Path) -> None:
    here = at(config, tmp_path)
    with pytest.raises(InferenceError):
        predict_folder(
            here,
            setup=run_setup(choose=choose_fake, around=lambda b: SpyBackend(b, fail={13: InferenceError("lost")})),
        )
    assert predict_folder(here, setup=on_workers()).resumed == 26
    assert_as_local(config, here)


def test_a_shard_and_an_update(config: BatchConfig, tmp_path: Path) -> None:
    here = at(config, tmp_path)
    record = predict_folder(replace(here, shard=Part(2, 3)), setup=on_workers())
    assert (record.found, record.identity.shard) == (20, "2/3")
    here.out.unlink()
    predict_folder(here, setup=on_workers())
    new = Path(config.tiles) / "zz.png"
    new.write_bytes(drawn_tile(5))
    try:
        record = predict_folder(replace(here, update=True), setup=on_workers())
    finally:
        new.unlink()
    assert (record.found, record.resumed, record.nodes) == (TILES + 1, TILES, (NodeRecord("node0", 1, 1, 1),))


# ---- a folder


def folders(config: BatchConfig, tmp_path: Path) -> tuple[BatchConfig, BatchConfig]:
    """A folder that a local run has made, and one to be made."""
    (tmp_path / "local").mkdir()
    config = replace(config, abnormal_at=0.4)
    local = replace(config, out=tmp_path / "local" / "preds")
    predict_folder(local, setup=run_setup(choose=choose_fake, chunk_rows=9))
    here = at(config, tmp_path)
    return local, replace(here, out=here.out.with_name("preds"))


def assert_folder_as_local(local: BatchConfig, here: BatchConfig) -> None:
    assert len(content(here.out)) == 1 + 7  # 61 rows in files of 9, and the manifest
    assert content(here.out) == content(local.out)
    for suffix in (".rows", ".stamps"):
        ours, others = (Path(f"{item.out}{suffix}").read_bytes() for item in (here, local))
        assert ours == others
    assert beside(here.out) == finished_files("preds")
    made, local_made = record_of(here.out), record_of(local.out)
    assert (made.table, made.decided) == (local_made.table, local_made.decided)
    assert made.decided is not None
    assert verify_table(here.out) == []


def in_nines(**options: Any) -> RunSetup:
    return replace(on_workers(**options), open_table=partial(TableTransaction, chunk_rows=9))


def test_workers_write_the_folder_of_a_local_run(config: BatchConfig, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install '.[report]'")
    local, here = folders(config, tmp_path)
    seen: list[Path] = []

    def read(done: Done | WrittenChunk) -> None:
        if isinstance(done, WrittenChunk):
            seen.append(work_folder(here.out) / done.file)

    predict_folder(here, setup=in_nines(block_tiles=8, lose=read))
    assert len(seen) == 7
    assert_folder_as_local(local, here)
    shard = replace(here, out=here.out.with_name("second"), shard=Part(2, 3))
    predict_folder(shard, setup=in_nines())
    whole = list(csv_lines(here.out))[1:]
    assert list(csv_lines(shard.out))[1:] == whole[20:40]
    ours, others = (item.out.with_name(f"{item.out.name}.stamps").read_bytes() for item in (shard, here))
    assert ours == others[20 * 8 : 40 * 8]


def test_files_that_are_lost_are_written_again(config: BatchConfig, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install '.[report]'")
    local, here = folders(config, tmp_path)
    lost: set[int] = set()

    def lose(done: Done | WrittenChunk) -> None:
        if isinstance(done, WrittenChunk) and done.number not in lost:
            lost.add(done.number)
            raise LostError

    predict_folder(here, setup=in_nines(lose=lose))
    assert lost == set(range(7))
    assert_folder_as_local(local, here)


def test_a_driver_that_is_lost_while_files_are_written(config: BatchConfig, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install '.[report]'")
    local, here = folders(config, tmp_path)

    def stop(done: Done | WrittenChunk) -> None:
        if isinstance(done, WrittenChunk) and done.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_folder(here, setup=in_nines(lose=stop))
    assert not here.out.exists()
    assert predict_folder(here, setup=in_nines()).resumed == TILES
    assert_folder_as_local(local, here)


# ---- what is said


def test_what_was_chosen_is_told_as_locally(config: BatchConfig, tmp_path: Path) -> None:
    told: list[Choice] = []
    for setup in (run_setup(choose=choose_fake), on_workers()):
        here = replace(config, out=tmp_path / f"{len(told)}.csv")
        predict_folder(here, setup=replace(setup, opened=told.append))
    locally, there = told
    assert list(choice_lines(config.model, there)) == list(choice_lines(config.model, locally))
    assert worker_line(there) == "each worker: fake, 1 thread, batches of 2 tiles"


# ---- what stops a run


def test_an_error_of_a_worker_is_the_runs(config: BatchConfig, tmp_path: Path) -> None:
    here = at(config, tmp_path)

    def failing(request: SessionRequest) -> Chosen:
        return Chosen(SpyBackend(choose_fake(request).backend, fail={5: InferenceError("out of memory")}))

    with pytest.raises(InferenceError, match="out of memory"):
        predict_folder(here, setup=on_workers(failing))
    assert RunRecord.load(here.record_path).status == "failed"
    predict_folder(here, setup=on_workers())
    assert_as_local(config, here)


def test_too_many_failures(config: BatchConfig, tmp_path: Path) -> None:
    here = replace(at(config, tmp_path), budget=FailureBudget(count=0))
    with pytest.raises(FailureBudgetExceeded):
        predict_folder(here, setup=on_workers())
    assert not here.out.exists()


def test_a_worker_that_sees_another_bundle(config: BatchConfig, tmp_path: Path) -> None:
    other = make_fake_bundle(tmp_path / "other")
    (other.root / "note.txt").write_text("another")
    elsewhere: Bundle = seal(other.root)
    here = at(config, tmp_path)
    with pytest.raises(ContractError, match="digest"):
        predict_folder(
            here,
            setup=on_workers(
                tell=lambda job: replace(
                    job, request=replace(job.request, bundle=replace(job.request.bundle, root=elsewhere.root))
                )
            ),
        )
    assert not work_folder(here.out).exists()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"listing": Path("/nonexistent/listing")}, OutputError, "does not see /nonexistent/listing: .* all nodes"),
        ({"version": "0.0.1"}, CervixError, "the run 0.0.1: install the same"),
    ],
)
def test_a_node_that_does_not_fit(
    config: BatchConfig, tmp_path: Path, change: dict[str, Any], error: type[CervixError], said: str
) -> None:
    with pytest.raises(error, match=said):
        predict_folder(at(config, tmp_path), setup=on_workers(tell=lambda job: replace(job, **change)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"device_class": "cpu-avx2"},
            r"a computes with device_class fake, this one has cpu-avx2: b would .* cluster$",
        ),
        ({"threads": 4}, r"threads 1, this one has 4: b would answer differently, .* as many CPUs with --ray-cpus$"),
    ],
)
def test_workers_that_would_answer_differently(config: BatchConfig, change: dict[str, Any], said: str) -> None:
    record = record_of(config.out)
    choice = Choice(record.backend, ModelContract(SIPAKMED_CLASSES), record.batch_size, record.provenance)
    first = Opened("a", record.identity, choice)
    first.require_alike(replace(first, host="b"))
    with pytest.raises(ResumeMismatchError, match=said):
        first.require_alike(replace(first, host="b", identity=replace(record.identity, **change)))


def test_another_kind_of_device_cannot_go_on(config: BatchConfig, tmp_path: Path) -> None:
    here = at(config, tmp_path)

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_folder(here, progress=stop, setup=on_workers(workers=1))

    def elsewhere(_: SessionRequest) -> Chosen:
        info = replace(FakeBackend().info, device_class="another CPU")
        return Chosen(FakeBackend(info=info))

    with pytest.raises(CervixError, match="device_class fake, this one has another CPU"):
        predict_folder(here, setup=on_workers(elsewhere))
