"""Fault after fault at every step of a run: no table or a complete one, never a success that is none.

And the next start always completes the table, byte for byte. `faults.py` is what runs and breaks the commands.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.bundle.bundle import Bundle
from engine.run.support import (
    FINISHED,
    PATIENCE_S,
    beside,
    done_event,
    draw_folder,
    environment,
    finished_files,
    program_with_shards,
    work_folder,
)

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 tiles, one of them bad: six batches in three shards."""
    root = draw_folder(tmp_path_factory.mktemp("few") / "study", 11)
    (root / "tile_00008.JPG").write_bytes(b"no tile")
    return root


def campaign(
    mode: str, tiles: Path, bundle: Bundle, scratch: Path, *, table: str = "preds.csv"
) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "engine.run.faults", mode, str(tiles), str(bundle.root), str(scratch), table]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_completed(finding: dict[str, Any], *, old: bool = False, table: str = "preds.csv") -> None:
    """The start after the fault ends with the undisturbed run's table, and with nothing left over."""
    again = finding["again"]
    assert (again["table"], again["verdict"]) == ("new", "as written"), finding
    assert set(again["left"]) == finished_files(table), finding
    # 3: one tile is bad. 2: the first start had finished but for its farewell, so its table is an existing one.
    finished_before = finding["table"] == "new" and not old
    assert again["code"] == 3 or (again["code"] == 2 and finished_before), finding


def assert_verified(finding: dict[str, Any]) -> None:
    """What lies there is a table and its own report, at every instant, or the word that there is none yet."""
    if finding["table"] == "none":
        assert finding["verdict"].startswith("no such table: "), finding
    else:
        assert finding["verdict"] == "as written", finding


def assert_one_line_of_error(text: str) -> None:
    assert re.fullmatch(r"error: [^\n]+\n", text), text


@pytest.mark.parametrize(("mode", "at_least"), [("error", 60), ("denied", 25), ("full", 15), ("short", 10)])
def test_an_error_of_the_file_system_at_every_step(
    mode: str, at_least: int, few: Path, fake_bundle: Bundle, tmp_path: Path
) -> None:
    findings = campaign(mode, few, fake_bundle, tmp_path)
    assert len(findings) > at_least
    needless = set()
    for finding in findings:
        assert finding["table"] in ("none", "new"), finding
        if finding["code"] == 3:  # the step was not needed
            assert finding["table"] == "new", finding
            needless.add(finding["step"])
        else:
            # 2: what cannot be looked at before anything else is as good as not there.
            assert finding["code"] == 1 or (finding["code"], finding["step"]) == (2, f"stat {few.name}"), finding
            assert_one_line_of_error(finding["stderr"])
        assert_verified(finding)
        assert_completed(finding)
    # A folder that is there, a temporary file that is made in another way, and first looks that are repeated. Never a
    # look at a tile.
    looks = {f"stat {name}" for name in (few.name, "out", "preds.csv")}
    assert needless <= {"mkdir out", "open .preds.csv.cervix", *looks}
    if mode == "error":
        assert any(finding["step"].startswith("stat tile_") for finding in findings)


def test_a_tile_that_cannot_be_opened_or_read_is_a_row(few: Path, fake_bundle: Bundle, tmp_path: Path) -> None:
    findings = campaign("unreadable", few, fake_bundle, tmp_path)
    calls = {f"{call} {path.name}" for path in few.rglob("tile_*") for call in ("open", "read")}
    assert {finding["step"] for finding in findings} == calls
    for finding in findings:
        assert finding["code"] == 3, finding
        (row,) = finding["rows"]
        assert Path(row.partition(",")[0]).name == finding["step"].partition(" ")[2]
        assert row.endswith(",failed,unreadable: Input/output error")


def test_an_error_at_every_fifth_step_beside_an_old_table(few: Path, fake_bundle: Bundle, tmp_path: Path) -> None:
    findings = campaign("error-old", few, fake_bundle, tmp_path)
    assert len(findings) > 10
    for finding in findings:
        assert finding["table"] in ("old", "new"), finding
        assert finding["code"] in (1, 3), finding
        assert_verified(finding)
        assert_completed(finding, old=True)


@pytest.mark.parametrize("old", [False, True])
def test_a_kill_at_every_step(old: bool, few: Path, fake_bundle: Bundle, tmp_path: Path) -> None:
    findings = campaign("kill-old" if old else "kill", few, fake_bundle, tmp_path)
    assert len(findings) > 25
    tables = [finding["table"] for finding in findings]
    before = "old" if old else "none"
    assert set(tables) == {before, "new"}
    assert tables == sorted(tables, key="new".__eq__)  # from the rename on, and not before
    for finding in findings:
        assert finding["code"] == -signal.SIGKILL, finding
        assert_verified(finding)
        assert_completed(finding, old=old)


@pytest.mark.parametrize("table", ["preds.csv.gz", "preds.jsonl", "preds.parquet", "preds"])
def test_a_kill_at_steps_from_assembly_to_another_format(
    table: str, few: Path, fake_bundle: Bundle, tmp_path: Path
) -> None:
    has_parquet = table in ("preds.parquet", "preds")
    if has_parquet:
        pytest.importorskip("pyarrow", reason="needs pyarrow: pip install '.[report]'")
    findings = campaign("kill-commit", few, fake_bundle, tmp_path, table=table)
    assert len(findings) > (2 if has_parquet else 5)
    tables = [finding["table"] for finding in findings]
    # One folder cannot take the place of another in one step: between two renames none is there.
    assert set(tables) - ({"none"} if table == "preds" else set()) == {"old", "new"}
    assert tables == sorted(tables, key=["old", "none", "new"].index)
    for finding in findings:
        assert finding["code"] == -signal.SIGKILL, finding
        assert_verified(finding)
        assert_completed(finding, old=True, table=table)


def test_a_kill_at_every_third_step_of_a_retry(few: Path, fake_bundle: Bundle, tmp_path: Path) -> None:
    findings = campaign("kill-retry", few, fake_bundle, tmp_path)
    assert len(findings) > 10
    assert {finding["table"] for finding in findings} == {"old", "new"}
    for finding in findings:
        assert_verified(finding)
        again = finding["again"]
        assert (again["code"], again["table"], again["verdict"]) == (0, "new", "as written"), finding
        assert set(again["left"]) == FINISHED, finding


def test_a_full_disk_in_the_middle_of_any_file(few: Path, fake_bundle: Bundle, tmp_path: Path) -> None:
    findings = campaign("limit", few, fake_bundle, tmp_path)
    assert len(findings) > 15
    for finding in findings:
        assert (finding["code"], finding["table"]) == (1, "none"), finding
        assert "File too large" in finding["stderr"]
        assert_one_line_of_error(finding["stderr"])
        assert_completed(finding)


def test_everything_is_synced_before_something_relies_on_it(few: Path, fake_bundle: Bundle, tmp_path: Path) -> None:
    (trace,) = campaign("trace", few, fake_bundle, tmp_path)
    steps = trace["steps"]
    folder, out = "fsync .preds.csv.cervix", "fsync out"

    def in_this_order(*wanted: str) -> None:
        at = -1
        for step in wanted:
            assert step in steps[at + 1 :], (step, wanted, steps)
            at = steps.index(step, at + 1)

    in_this_order(
        "fsync listing", "fsync .journal.jsonl.tmp", "rename .journal.jsonl.tmp", folder, "open shard-000000000.csv"
    )
    for first in (0, 2, 4):
        name = f"shard-{first:09d}.csv"
        in_this_order(f"open {name}", f"fsync {name}", folder, "open journal.jsonl", "fsync journal.jsonl")
    in_this_order(
        *("open table.csv", "fsync table.csv", "fsync journal.jsonl"),
        *("fsync .preds.csv.run.json.tmp", "fsync .record.json.tmp", "rename table.csv"),
    )
    in_this_order(
        *("rename .preds.csv.run.json.tmp", out, "rename table.csv", out, "rename record.json", out),
        *("remove listing", "remove journal.jsonl"),
    )


def test_kills_at_random_times(fake_bundle: Bundle, tiles: Path, tmp_path: Path) -> None:
    findings = campaign("random", tiles, fake_bundle, tmp_path)
    kills = [finding for finding in findings if finding["code"] == -signal.SIGKILL]
    assert len(kills) == 15
    for finding in findings:
        assert finding["table"] in ("none", "new"), finding
        if finding["again"]:
            assert finding["again"]["table"] == "new", finding
            assert set(finding["again"]["left"]) == FINISHED, finding
    assert findings[-1]["again"]


def test_kills_of_the_installed_program(bundle: Bundle, tmp_path: Path) -> None:
    """With ONNX Runtime's own threads, at progress that is seen from outside."""
    many = draw_folder(tmp_path / "many", 240)
    expected, out = tmp_path / "expected.csv", tmp_path / "out" / "preds.csv"
    out.parent.mkdir()

    def command(table: Path) -> list[str]:
        options = ["--model", str(bundle.root), "-b", "4", "--out", str(table)]
        return [sys.executable, "-c", program_with_shards(8), str(many), *options]

    subprocess.run(command(expected), check=True, capture_output=True, timeout=PATIENCE_S)
    kept = 0
    for shards in (0, 2, 9, 16, 22):
        process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and len(list(work_folder(out).glob("shard-*"))) < shards:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
        assert not out.exists()
        kept = len(list(work_folder(out).glob("shard-*")))
        assert kept >= shards
    done = subprocess.run([*command(out), "--json"], check=True, capture_output=True, timeout=PATIENCE_S)
    assert out.read_bytes() == expected.read_bytes()
    assert beside(out) == FINISHED
    assert done_event(done.stdout)["resumed"] >= 8 * (kept - 1)
