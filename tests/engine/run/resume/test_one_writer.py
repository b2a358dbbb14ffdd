"""One run at a time has a table's place, and one that cannot write leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cervix_engine.errors import CervixError, OutputError, OutputLockedError
from cervix_engine.run.batch import predict_folder
from cervix_engine.run.transaction import TableTransaction
from engine.run.resume.stopped_run import FULL, Run, assert_finished
from engine.run.support import PATIENCE_S, beside, choose_fake, make_fake_bundle, run_setup, threads_end

pytestmark = pytest.mark.timeout(300)


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
