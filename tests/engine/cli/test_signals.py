"""SIGINT and SIGTERM at any instant: the run ends soon, says so in one line, and the next one goes on from there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.run.record import RunRecord, record_beside
from cervix_engine.run.transaction import State, TableTransaction
from engine.run.support import FINISHED, PATIENCE_S, beside, draw_folder, environment, work_folder

pytestmark = pytest.mark.timeout(600)

TILES, BATCH = 400, 4
SOON_S = 30.0  # 2 s are promised on a quiet machine; what is interrupted here would go on for minutes
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("many") / "study", TILES)


def command(where: str, tiles: Path, bundle: Bundle, out: Path) -> list[str]:
    arguments = [str(tiles), "--model", str(bundle.root), "--out", str(out), "-b", str(BATCH)]
    return [sys.executable, "-m", "engine.cli.slow_program", where, *arguments]


def interrupted(arguments: list[str], signum: signal.Signals, *, after: str, delay_s: float) -> tuple[int, str, float]:
    """Exit code, standard error, and seconds to end of a run that gets a signal `delay_s` after it said `after`."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    for line in process.stdout:
        if line == f"{after}\n":
            break
    time.sleep(delay_s)
    process.send_signal(signum)
    started = time.monotonic()
    _, stderr = process.communicate(timeout=SOON_S)
    return process.returncode, stderr, time.monotonic() - started


def run_to_the_end(arguments: list[str]) -> int:
    return subprocess.run(arguments, capture_output=True, timeout=PATIENCE_S, env=environment()).returncode


def done_so_far(out: Path) -> int:
    left = TableTransaction(out)
    return left.journal.tiles if left.load() is State.PARTIAL else 0


def test_at_ten_random_instants(many: Path, fake_bundle: Bundle, tmp_path: Path) -> None:
    """One table, interrupted ten times: while it starts, while a model loads, in a long batch, between batches."""
    expected, out = tmp_path / "expected.csv", tmp_path / "out" / "preds.csv"
    out.parent.mkdir()
    assert run_to_the_end(command("none", many, fake_bundle, expected)) == 0
    choose = random.Random(5)
    instants = [("none", "started"), ("load", "loading"), ("batch", "computing"), ("load", "loading")]
    instants += [("none", "computing")] * 5 + [("batch", "computing")]
    progress, told = [0], set()
    for number, (where, after) in enumerate(instants):
        signum = (signal.SIGINT, signal.SIGTERM)[number % 2]
        delay_s = choose.uniform(0, 0.5)
        code, stderr, seconds = interrupted(
            command(where, many, fake_bundle, out), signum, after=after, delay_s=delay_s
        )
        print(f"{signum.name} {delay_s:.2f} s after {after!r} ({where}): ended in {seconds:.2f} s")  # noqa: T201
        assert code == CODES[signum], stderr
        assert not out.exists()
        progress.append(done_so_far(out))
        begun = work_folder(out).exists()
        kept = f"{progress[-1]} of {TILES} tiles are kept; " if begun else ""
        assert stderr.splitlines()[-1] == f"interrupted: {kept}the same command goes on where this one stopped"
        if (where, after) == ("none", "computing"):
            report = RunRecord.load(record_beside(out))
            told.add((report.status, report.reason))
    assert progress == sorted(progress)
    # A machine that is too busy to unwind in time ends the process instead, which then says no more.
    in_words = {("interrupted", "Interrupted: SIGINT"), ("interrupted", "Interrupted: SIGTERM")}
    assert told & in_words
    assert told <= in_words | {("running", None)}
    assert 0 < progress[-1] < TILES
    assert run_to_the_end(command("none", many, fake_bundle, out)) == 0
    assert out.read_bytes() == expected.read_bytes()
    assert beside(out) == FINISHED
    assert RunRecord.load(record_beside(out)).resumed >= progress[-1]
