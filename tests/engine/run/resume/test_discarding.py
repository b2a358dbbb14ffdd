"""What an earlier run left is discarded, replaced or cleared only when that is asked for, and never by halves."""

from __future__ import annotations

from pathlib import Path

import pytest

from cervix_engine.errors import CervixError, OutputExistsError
from cervix_engine.run.record import RunRecord
from engine.run.resume.stopped_run import BATCHES, TILES, Run, assert_finished
from engine.run.support import Killed, draw_folder, read_table

pytestmark = pytest.mark.timeout(300)


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
