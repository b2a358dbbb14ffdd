"""Whatever ends a run early, the next one completes the same table, and computes only what is missing.

"The same" is always the same bytes as an undisturbed run's.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cervix_engine.backends import Backend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import (
    CervixError,
    InferenceError,
    OutputError,
    OutputExistsError,
    OutputLockedError,
    ResumeMismatchError,
)
from cervix_engine.run.batch import BatchConfig, Progress, no_progress, predict_folder
from cervix_engine.run.record import RunRecord
from cervix_engine.run.shards import ShardSize
from cervix_engine.run.transaction import State, TableTransaction
from cervix_engine.run.verify import verify_table
from engine.run.support import (
    FINISHED,
    PATIENCE_S,
    Killed,
    SpyBackend,
    beside,
    choose_fake,
    draw_folder,
    make_fake_bundle,
    read_table,
    run_setup,
    threads_end,
    tiny_onnx,
    work_folder,
)
from engine.run.support import make_bundle as make_bundle_at

pytestmark = pytest.mark.timeout(300)

FULL = OutputError("no space left on device")
TILES, BATCH, SHARD = 50, 2, 6  # 25 batches in 9 shards, the last one of 1 batch
BATCHES, BATCHES_A_SHARD = 25, 3


@dataclass
class Run:
    """A run of the tiny bundle over 50 tiles, which can be told to fail; `spy` is what its backend saw."""

    config: BatchConfig
    shard: ShardSize = ShardSize(SHARD)  # noqa: RUF009 - frozen
    spy: SpyBackend | None = None

    @property
    def out(self) -> Path:
        return self.config.out

    @property
    def folder(self) -> Path:
        return work_folder(self.out)

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def __call__(
        self,
        *,
        fail: dict[int, BaseException] | None = None,
        stop_at: str = "",
        error: BaseException = FULL,
        progress: Progress = no_progress,
        **changes: Any,
    ) -> RunRecord:
        def spied(backend: Backend) -> SpyBackend:
            self.spy = SpyBackend(backend, fail=fail)
            return self.spy

        setup = run_setup(around=spied, shard=self.shard, stop_at=stop_at, error=error)
        return predict_folder(replace(self.config, **changes), progress=progress, setup=setup)

    def stop_before_the_commit(self, **changes: Any) -> None:
        with pytest.raises(OutputError, match="no space"):
            self(stop_at="commit", **changes)

    @property
    def computed(self) -> int:
        assert self.spy is not None
        return len(self.spy.digests)

    def interrupt(self, at: int = 13, **changes: Any) -> None:
        """Fail in batch `at`: 13 leaves the four shards of batches 0 to 11, and one of batch 12."""
        with pytest.raises(InferenceError, match="out of memory"):
            self(fail={at: InferenceError("out of memory")}, **changes)

    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.csv"))

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line)["entry"] for line in self.journal.read_text().splitlines()]

    @property
    def stored(self) -> int:
        """Batches that are safe."""
        return sum(entry.get("batches", 0) for entry in self.entries())


@pytest.fixture
def run(tiles: Path, bundle: Bundle, tmp_path: Path) -> Run:
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "preds.csv"
    return Run(BatchConfig(tiles=tiles, out=out, model=bundle.root, batch_size=BATCH))


@pytest.fixture(scope="module")
def undisturbed(tiles: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("undisturbed") / "preds.csv"
    predict_folder(BatchConfig(tiles=tiles, out=out, model=bundle.root, batch_size=BATCH))
    assert len(read_table(out)) == TILES
    return out.read_bytes()


def assert_finished(run: Run, table: bytes) -> None:
    assert run.out.read_bytes() == table
    assert beside(run.out) == FINISHED
    report = RunRecord.load(run.config.record_path)
    assert report.found == report.ok + report.failed == TILES


def test_an_undisturbed_run(run: Run, undisturbed: bytes) -> None:
    report = run()
    assert_finished(run, undisturbed)
    assert run.computed == BATCHES
    assert report.resumed == 0
    assert RunRecord.load(run.config.record_path) == report


# ---- an error of the backend


@pytest.mark.parametrize("at", [0, 1, 2, 3, 12, 13, 23, 24])
def test_a_failed_run_goes_on_where_it_stopped(run: Run, undisturbed: bytes, at: int) -> None:
    run.interrupt(at)
    assert not run.out.exists()
    stored = run.stored
    report = run()
    assert_finished(run, undisturbed)
    assert run.computed == BATCHES - stored
    assert report.resumed == min(TILES, stored * BATCH)


def test_what_was_computed_before_a_failure_is_kept(run: Run) -> None:
    run.interrupt(13)
    assert run.stored == 13


def test_a_run_that_fails_again_and_again_gets_there(run: Run, undisturbed: bytes) -> None:
    total = 0
    for _ in range(60):
        try:
            run(fail={6: InferenceError("out of memory")})
        except InferenceError:
            total += run.computed
            continue
        break
    assert_finished(run, undisturbed)
    assert total + run.computed <= 3 * BATCHES


def test_a_keyboard_interrupt_keeps_what_was_done(run: Run, undisturbed: bytes) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(fail={13: KeyboardInterrupt()})
    assert len(run.shards()) >= 3
    run()
    assert_finished(run, undisturbed)


def test_a_failing_listener_stops_the_run_resumably(run: Run, undisturbed: bytes) -> None:
    def progress(done: int, found: int) -> None:
        if done >= 20:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(progress=progress)
    assert threads_end()
    assert run.stored == 10  # also the one batch that fills no shard
    run()
    assert_finished(run, undisturbed)


# ---- how much is computed again


@pytest.mark.parametrize("missing", [0, 1, 4, 8, 9])
def test_only_missing_batches_are_computed(run: Run, undisturbed: bytes, missing: int) -> None:
    run.stop_before_the_commit()
    assert len(run.shards()) == 9
    firsts = [*range(0, 25, 3)]
    scattered = (firsts[1::2] + firsts[::2])[:missing]
    for first in scattered:
        (run.folder / f"shard-{first:09d}.csv").unlink()
    lost = sum(min(BATCHES_A_SHARD, BATCHES - first) for first in scattered)
    report = run()
    assert_finished(run, undisturbed)
    assert run.computed == lost
    assert report.resumed == TILES - lost * BATCH


@pytest.mark.parametrize("percent_left", [90, 75, 50, 25, 10, 0])
def test_what_is_computed_again_is_what_is_missing(run: Run, percent_left: int, tmp_path: Path) -> None:
    run.shard = ShardSize(BATCH)
    tiles = draw_folder(tmp_path / "forty", 40)  # 20 batches, a shard each
    run(tiles=tiles)
    expected = run.out.read_bytes()
    run.out.unlink()
    run.stop_before_the_commit(tiles=tiles)
    missing = 20 - 20 * percent_left // 100
    for shard in random.Random(percent_left).sample(run.shards(), missing):
        shard.unlink()
    report = run(tiles=tiles)
    assert run.out.read_bytes() == expected
    assert run.computed == missing
    assert report.resumed == 40 - missing * BATCH


def test_a_gap_ends_a_shard(run: Run, undisturbed: bytes) -> None:
    run.stop_before_the_commit()
    for first in (3, 9, 12, 24):
        (run.folder / f"shard-{first:09d}.csv").unlink()
    run.shard = ShardSize(1000)
    run.stop_before_the_commit()
    again = [(entry["first_batch"], entry["batches"]) for entry in run.entries() if "batches" in entry][9:]
    assert again == [(3, 3), (9, 6), (24, 1)]
    run()
    assert_finished(run, undisturbed)


def test_a_damaged_shard_is_computed_again(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    stored = run.stored
    data = bytearray(run.shards()[1].read_bytes())
    data[len(data) // 2] ^= 1
    run.shards()[1].write_bytes(data)
    run.shards()[2].write_bytes(run.shards()[2].read_bytes()[:-1])
    run()
    assert_finished(run, undisturbed)
    assert run.computed == BATCHES - stored + 2 * BATCHES_A_SHARD


def test_a_shard_that_was_swapped_for_another_is_computed_again(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    first, second = run.shards()[:2]
    first.write_bytes(second.read_bytes())
    run()
    assert_finished(run, undisturbed)


def test_shards_are_closed_by_time_too(run: Run, undisturbed: bytes) -> None:
    run.shard = ShardSize(SHARD, seconds=0.0)
    run.interrupt(10)
    assert [entry["batches"] for entry in run.entries()[1:]] == [1] * run.stored
    run()
    assert_finished(run, undisturbed)


def test_the_same_table_in_its_place_is_not_taken_for_the_new_one(run: Run, undisturbed: bytes) -> None:
    run()
    run.stop_before_the_commit(overwrite=True)
    assert TableTransaction(run.out).load() is State.ASSEMBLED
    report = run(overwrite=True)
    assert_finished(run, undisturbed)
    assert (run.computed, report.resumed) == (0, TILES)
    assert RunRecord.load(run.config.record_path) == report
    assert verify_table(run.out) == []


# ---- the journal


def test_every_line_is_of_the_schema(run: Run) -> None:
    text = (resources.files("cervix_engine") / "schemas" / "journal.schema.json").read_text(encoding="utf-8")
    validator = jsonschema.Draft202012Validator(json.loads(text))
    run.stop_before_the_commit()
    lines = [json.loads(line) for line in run.journal.read_text(encoding="ascii").splitlines()]
    assert len(lines) == 1 + 9 + 1
    for line in lines:
        validator.validate(line)
        for key in line["entry"].keys() - {"ignored_by"}:  # journals of earlier versions have none
            assert not validator.is_valid({**line, "entry": {k: v for k, v in line["entry"].items() if k != key}})
        assert not validator.is_valid({**line, "entry": {**line["entry"], "more": 1}})


@pytest.mark.parametrize("torn", [b"{", b'{"first_batch": 9, "bat', b"\0\0\0", b"x" * 5000])
def test_a_torn_last_line_is_done_again(run: Run, undisturbed: bytes, torn: bytes) -> None:
    run.interrupt()
    with run.journal.open("ab") as file:
        file.write(torn)
    run.interrupt(3)  # appends behind the mended end
    assert run.entries()[-1]["ok"] > 0
    run()
    assert_finished(run, undisturbed)


def test_every_way_to_tear_the_last_line(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    whole = run.journal.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    kept = run.out.parent / "kept"
    shutil.copytree(run.folder, kept)
    for cut in range(start, len(whole), 11):
        shutil.copytree(kept, run.folder, dirs_exist_ok=True)
        run.journal.write_bytes(whole[:cut])
        run()
        assert run.out.read_bytes() == undisturbed
        run.out.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"garbage",
        b"\0" * 40,
        b"\xff\xfe",
        b"12",
        b"null",
        b'"text"',
        b"[]",
        b"{}",
        b'{"first_batch": 3}',
        b'{"first_batch": 3, "batches": 3, "ok": 6, "failures": {}, "sha256": "x", "more": 1}',
        b'{"assembled": 7}',
    ],
)
def test_a_damaged_middle_line_is_done_again(run: Run, undisturbed: bytes, damage: bytes) -> None:
    run.interrupt()
    lines = run.journal.read_bytes().split(b"\n")
    lines[2] = damage
    run.journal.write_bytes(b"\n".join(lines))
    run()
    assert_finished(run, undisturbed)


@pytest.mark.parametrize(
    "change", [{"first_batch": 4}, {"batches": 4}, {"ok": 7}, {"failures": {"empty": 1}}, {"sha256": "0" * 64}], ids=str
)
def test_a_line_that_says_something_else_is_done_again(run: Run, undisturbed: bytes, change: dict[str, Any]) -> None:
    run.interrupt()
    lines = run.journal.read_bytes().splitlines(keepends=True)
    line = json.loads(lines[2])
    line["entry"].update(change)
    lines[2] = json.dumps(line).encode() + b"\n"
    run.journal.write_bytes(b"".join(lines))
    run()
    assert_finished(run, undisturbed)


def test_any_flipped_bit_in_the_journal_is_noticed(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    kept = run.out.parent / "kept"
    shutil.copytree(run.folder, kept)
    whole = run.journal.read_bytes()
    for at in range(3, len(whole), 131):
        shutil.copytree(kept, run.folder, dirs_exist_ok=True)
        run.journal.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            run()
        except OutputError as error:
            assert "--no-resume" in str(error)  # noqa: PT017 - either outcome is right
            continue
        assert run.out.read_bytes() == undisturbed
        run.out.unlink()


@pytest.mark.parametrize("header", [b"", b"garbage", b"{}", b"[]", b"7", b'{"schema": "cervix/journal/9"}'])
def test_a_journal_without_its_first_line_is_refused_until_discarded(
    run: Run, undisturbed: bytes, header: bytes
) -> None:
    run.interrupt()
    _, *rest = run.journal.read_bytes().split(b"\n")
    run.journal.write_bytes(b"\n".join([header, *rest]))
    with pytest.raises(OutputError, match="--no-resume"):
        run()
    run(resume=False)
    assert_finished(run, undisturbed)


def test_an_empty_journal_is_refused_until_discarded(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    run.journal.write_bytes(b"")
    with pytest.raises(OutputError, match="--no-resume"):
        run()
    run(resume=False)
    assert_finished(run, undisturbed)


def test_a_damaged_or_missing_listing_stops_the_run(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    listing = run.folder / "listing"
    listing.write_bytes(listing.read_bytes()[:-9])
    with pytest.raises(ResumeMismatchError, match="listing"):
        run()
    listing.unlink()
    with pytest.raises(CervixError, match="listing"):
        run()
    run(resume=False)
    assert_finished(run, undisturbed)


# ---- identity


def test_another_batch_size_is_refused(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    with pytest.raises(ResumeMismatchError, match=r"batch_size 2, this one has 3.*--no-resume"):
        run(batch_size=3)
    run()
    assert_finished(run, undisturbed)


def test_another_bundle_is_refused(run: Run, undisturbed: bytes, tmp_path: Path) -> None:
    run.interrupt()
    other = make_bundle_at(tmp_path / "other", model=tiny_onnx(scaled=True)).root
    (other / "note.txt").write_text("another bundle")
    from cervix_engine.bundle.bundle import seal

    seal(other)
    with pytest.raises(ResumeMismatchError, match="bundle_digest"):
        run(model=other)
    assert len(run.shards()) > 0
    run()
    assert_finished(run, undisturbed)


def test_the_same_names_in_another_folder_are_refused(run: Run, undisturbed: bytes, tmp_path: Path) -> None:
    run.interrupt()
    other = draw_folder(tmp_path / "other study", TILES, seed=2)
    with pytest.raises(ResumeMismatchError, match="other study"):
        run(tiles=other)
    run()
    assert_finished(run, undisturbed)


def test_the_same_folder_by_another_path_goes_on(
    run: Run, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.interrupt()
    link = tmp_path / "link"
    link.symlink_to(run.config.tiles, target_is_directory=True)
    monkeypatch.chdir(Path(run.config.tiles).parent)
    run.interrupt(3, tiles=link)
    run(tiles=Path(Path(run.config.tiles).name))
    assert_finished(run, undisturbed)


def test_another_precision_is_refused(run: Run, undisturbed: bytes, tmp_path: Path) -> None:
    from cervix_engine.bundle.bundle import seal

    both = make_bundle_at(tmp_path / "both").root
    (both / "model.fp16.onnx").write_bytes(tiny_onnx(half=True))
    seal(both)
    run.interrupt(model=both, precision="fp16")
    for other in ("fp32", "bf16"):
        with pytest.raises(ResumeMismatchError, match=f"precision fp16, this one has {other}"):
            run(model=both, precision=other)
    assert run(model=both).backend.precision == "fp16"  # auto takes the partial run's own


def test_the_batch_size_and_workers_of_a_resume_are_free_when_not_given(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    report = run(batch_size=None, workers=5)
    assert report.batch_size == BATCH
    assert_finished(run, undisturbed)


def test_a_resume_keeps_to_its_stored_listing(run: Run, undisturbed: bytes, tmp_path: Path) -> None:
    moving = tmp_path / "moving" / Path(run.config.tiles).name
    shutil.copytree(run.config.tiles, moving)
    run.interrupt(tiles=moving)
    shutil.copy(moving / "tile_00000.jpg", moving / "later.jpg")
    report = run(tiles=moving)
    assert report.found == TILES
    assert run.out.read_bytes() == undisturbed


# ---- discarding and replacing


def test_no_resume_discards(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    report = run(resume=False)
    assert report.resumed == 0
    assert run.computed == BATCHES
    assert_finished(run, undisturbed)


def test_no_resume_discards_nothing_when_it_is_refused(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    stored = run.stored
    for refused in ({"expect_digest": "0" * 64}, {"precision": "int8"}, {"tiles": run.out.parent}):
        with pytest.raises(CervixError):
            run(resume=False, **refused)
    run()
    assert run.computed == BATCHES - stored
    assert_finished(run, undisturbed)


def test_no_resume_with_another_batch_size(run: Run) -> None:
    run.interrupt()
    assert run(resume=False, batch_size=7).batch_size == 7
    assert len(read_table(run.out)) == TILES


def test_a_finished_table_is_not_touched_without_overwrite(run: Run, undisturbed: bytes) -> None:
    run()
    for resume in (True, False):
        with pytest.raises(OutputExistsError, match="--overwrite"):
            run(resume=resume)
    assert_finished(run, undisturbed)


def test_overwriting_replaces_only_at_the_rename(run: Run, undisturbed: bytes) -> None:
    run.out.write_bytes(b"an old table")
    for at in (0, 13, 2):
        run.interrupt(at, overwrite=True)
        assert run.out.read_bytes() == b"an old table"
    run.stop_before_the_commit(overwrite=True)
    assert run.out.read_bytes() == b"an old table"
    with pytest.raises(OutputExistsError):
        run()
    assert run.out.read_bytes() == b"an old table"
    run(overwrite=True)
    assert_finished(run, undisturbed)
    assert run.computed == 0


# ---- between the rename and the end


@pytest.fixture
def committed(run: Run) -> Run:
    """A run that was killed right behind the rename."""
    with pytest.raises(Killed):
        run(stop_at="clear", error=Killed())
    assert run.out.exists()
    assert run.journal.exists()
    return run


def test_a_start_after_the_rename_finishes_the_cleanup(committed: Run, undisturbed: bytes) -> None:
    earlier = RunRecord.load(committed.config.record_path)
    committed.spy = None
    assert committed() == earlier
    assert committed.spy is None  # no model was loaded
    assert_finished(committed, undisturbed)


def test_a_cleanup_that_was_killed_half_way_is_finished(committed: Run, undisturbed: bytes) -> None:
    for file in committed.folder.iterdir():
        if file.name != "journal.jsonl":
            file.unlink()
            break
    committed()
    assert_finished(committed, undisturbed)


def test_after_the_rename_another_question_is_not_answered_by_the_old_table(
    committed: Run, undisturbed: bytes, tmp_path: Path
) -> None:
    other = draw_folder(tmp_path / "other study", 4, seed=3)
    with pytest.raises(OutputExistsError):
        committed(tiles=other)
    assert_finished(committed, undisturbed)


def test_after_the_rename_overwrite_computes_anew(committed: Run, tmp_path: Path) -> None:
    other = draw_folder(tmp_path / "other study", 4, seed=3)
    assert committed(tiles=other, overwrite=True).found == 4
    assert len(read_table(committed.out)) == 4


@pytest.mark.parametrize("left", [[], ["listing"], ["listing", "shard-000000000.csv"]])
def test_a_work_folder_without_a_journal_is_cleared(run: Run, undisturbed: bytes, left: list[str]) -> None:
    run.folder.mkdir()
    for name in left:
        (run.folder / name).write_bytes(b"left by a kill")
    run()
    assert_finished(run, undisturbed)


def test_discarding_that_was_killed_half_way_leaves_no_trap(
    run: Run, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, killed_at = Path.unlink, 0
    for at in range(7):
        run.interrupt()
        calls = 0

        def counted(path: Path, missing_ok: bool = False, at: int = at) -> None:
            nonlocal calls
            if path.parent == run.folder:
                calls += 1
                if calls > at:
                    raise Killed
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", counted)
            try:
                run(resume=False)
            except Killed:
                killed_at += 1
        run()
        assert_finished(run, undisturbed)
        run.out.unlink()
    assert killed_at >= 5


# ---- two writers


def test_a_second_writer_is_refused(run: Run, undisturbed: bytes) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from cervix_engine.run.transaction import TableTransaction\n"
        "with TableTransaction(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(run.out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(OutputLockedError, match="another run is writing"):
            run()
        assert beside(run.out) == set()
        holder.kill()
        holder.wait(PATIENCE_S)
        run()  # the kernel released the killed one's lock
    finally:
        holder.kill()
        holder.communicate()
    assert_finished(run, undisturbed)


def test_a_second_writer_in_the_same_process_is_refused(run: Run) -> None:
    with TableTransaction(run.out), pytest.raises(OutputLockedError):
        run()
    with TableTransaction(run.out.with_name("other.csv")):
        run()


def test_a_stale_lock_file_is_no_lock(run: Run, undisturbed: bytes) -> None:
    run.out.with_name(".preds.csv.lock").write_text("12345")
    run()
    assert_finished(run, undisturbed)


# ---- the disk


def test_a_writer_s_failure_ends_all_threads(run: Run, tmp_path: Path) -> None:
    # A backend that goes on for ever, unlike one that fails as soon as it is freed.
    config = replace(run.config, model=make_fake_bundle(tmp_path / "fake").root)
    with pytest.raises(OutputError, match="no space left on device") as held:
        predict_folder(config, setup=run_setup(choose=choose_fake, stop_at="store", error=FULL))
    # The traceback is still held, and with it the stream's frame: nothing was tidied up by chance.
    assert held.tb is not None
    assert threads_end()


def test_a_run_that_never_began_leaves_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CervixError):
        run(tiles=tmp_path / "empty")
    with pytest.raises(CervixError):
        run(precision="int8")
    with pytest.raises(CervixError):
        run(expect_digest="0" * 64)
    assert beside(run.out) == set()
