"""Every command works in a job that lacks what a person's machine has, or is refused in one line before long work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from cervix_engine.bundle.bundle import seal
from cervix_engine.run.assembly.part import Part
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_train.results.fold_table import FOLDS_FILE, FoldTable
from cervix_train.synthetic import write_drawn
from engine.run.support import draw_folder, make_bundle, read_table
from jobs import JOBS, Job, shim_in, skip_unless_possible

SCRIPTS = Path(sys.executable).parent
BENCH = "--count 8 -b 4 --sweep 4 --max-rounds 5 --round-seconds 0 --stable-within 0.99"
TRAIN = "--backbone cnn --input-size 32 --epochs 1 -b 16"

WEAKER = {
    "SHIM_FSYNC": "warning: this file system keeps no new names in a power cut (fsync of a folder: ",
    "SHIM_FLOCK": "warning: this file system has no locks (",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiles, labelled tiles and a bundle. Read only."""
    folder = tmp_path_factory.mktemp("given")
    draw_folder(folder / "study", 24)
    model = make_bundle(folder / "bundle").root
    write_drawn(folder / "cells", tiles=60, seed=1)
    for number in (1, 2):
        part = Part(number, of=2)
        predict_folder(BatchConfig(folder / "study", folder / f"{number}.csv", model, batch_size=4, shard=part))
    write_folds(folder / "folds")
    return folder


def write_folds(root: Path) -> None:
    """A bundle that was cross-validated, as its table says."""
    names = make_bundle(root).contract.class_names
    rows = [(f"{n}.png", names[n % len(names)], f"group {n % 10}", 1 + n % 3) for n in range(30)]
    paths, labels, groups, folds = zip(*rows, strict=True)
    answers = np.random.default_rng(1).dirichlet([1] * len(names), len(rows)).astype(np.float32)
    (root / FOLDS_FILE).parent.mkdir()
    FoldTable(paths, labels, groups, folds, names, answers).write(root / FOLDS_FILE)
    seal(root)


def warnings_in(said: str, job: Job) -> list[str]:
    """The lines that say what is weaker; each of them is one of those that `job` is a reason for."""
    lines = [line for line in said.splitlines() if line.startswith("warning: this file system")]
    for line in lines:
        assert any(line.startswith(text) for name, text in WEAKER.items() if name in job.variables), line
    return lines


def run_in(job: Job, line: str, *, given: Path, out: Path, shim: dict[str, str]) -> str:
    """Run a command that must not fail; what it said."""
    program, *arguments = line.format(given=given, out=out).split()
    code, said = job.run([SCRIPTS / program, *arguments], out=out, shim=shim)
    assert (code, "Traceback" in said) == (0, False), f"{line}: {said}"
    return said


_BATCH = "cervix-batch {given}/study --model {given}/bundle -b 4"
OF_A_RUN = (
    f"{_BATCH} -o {{out}}/dry.csv --dry-run",
    f"{_BATCH} -o {{out}}/preds.csv --summary {{out}}/slides.csv --report {{out}}/report.html",
    f"{_BATCH} -o {{out}}/preds.parquet",
    "cervix-verify {out}/preds.csv",
    "cervix-report {out}/preds.parquet -o {out}/again.html",
    "cervix-compare {out}/preds.csv {out}/preds.parquet -o {out}/changes.csv",
    "cervix-doctor --model {given}/bundle",
)
OF_A_MODEL = (
    f"cervix-train {{given}}/cells -o {{out}}/bundle {TRAIN}",
    "cervix-export {out}/bundle --fp16 --tiles 8",
    "cervix-parity --model {out}/bundle --json {out}/parity.json",
    "cervix-evaluate {out}/bundle {given}/cells --json {out}/metrics.json",
    "cervix-audit {given}/cells --json {out}/audit.json",
    f"cervix-bench {{given}}/study --model {{out}}/bundle {BENCH} --out {{out}}/bench.json --plot {{out}}/bench.png",
)
OF_WHAT_IS_THERE = (
    "cervix-merge {out}/whole.csv {given}/1.csv {given}/2.csv",
    "cervix-import {given}/bundle/model.onnx --contract {given}/bundle/contract.json --golden {given}/study -o {out}/b",
    "cervix-card {given}/bundle -o {out}/card.md",
    "cervix card {given}/bundle --html -o {out}/card.html",
    "cervix-compare-folds {given}/folds {given}/folds --json {out}/paired.json",
)


def test_every_command_is_run_in_a_job() -> None:
    run = {line.split()[0] for line in (*OF_A_RUN, *OF_A_MODEL, *OF_WHAT_IS_THERE)}
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    assert run == tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["scripts"].keys()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_run_and_what_follows_it_need_nothing_that_a_job_lacks(job: Job, given: Path, tmp_path: Path) -> None:
    out, shim = tmp_path / "out", shim_in(tmp_path)
    out.mkdir()
    skip_unless_possible(job, out)
    for line in OF_A_RUN:
        said = run_in(job, line, given=given, out=out, shim=shim)
        if line.startswith(_BATCH) and "--dry-run" not in line and "2>&-" not in job.closed:
            assert len(warnings_in(said, job)) == len(job.variables.keys() & WEAKER.keys())
    assert [row["status"] for row in read_table(out / "preds.csv")] == ["ok"] * 24
    left = {path.name for path in out.iterdir()} - {".said", ".preds.csv.lock", ".preds.parquet.lock"}
    beside = ("", ".run.json", ".rows", ".stamps")
    tables = {f"preds.{suffix}{more}" for suffix in ("csv", "parquet") for more in beside}
    assert left == {*tables, "slides.csv", "report.html", "again.html", "changes.csv"}


READ_ONLY = JOBS["nothing but the output's folder can be written"]
HARD = Job(variables={"SHIM_NO_USER": "1", "SHIM_FSYNC": "22", "SHIM_FLOCK": "37"}, closed="2>&-")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("job", [HARD, READ_ONLY], ids=["odd", "read-only"])
def test_training_and_export_need_nothing_that_a_job_lacks(job: Job, given: Path, tmp_path: Path) -> None:
    out, shim = tmp_path / "out", shim_in(tmp_path)
    out.mkdir()
    skip_unless_possible(job, out)
    for line in OF_A_MODEL:
        run_in(job, line, given=given, out=out, shim=shim)


@pytest.mark.parametrize("job", [HARD, READ_ONLY], ids=["odd", "read-only"])
def test_what_uses_tables_and_bundles_needs_nothing_that_a_job_lacks(job: Job, given: Path, tmp_path: Path) -> None:
    out, shim = tmp_path / "out", shim_in(tmp_path)
    out.mkdir()
    skip_unless_possible(job, out)
    for line in OF_WHAT_IS_THERE:
        run_in(job, line, given=given, out=out, shim=shim)


@pytest.mark.parametrize("line", ["cervix-parity --model bundle", "cervix-evaluate bundle cells"])
def test_without_any_folder_for_temporary_files_one_line_says_so_before_any_work(
    line: str, given: Path, tmp_path: Path
) -> None:
    job = READ_ONLY
    skip_unless_possible(job, tmp_path)
    program, *arguments = line.replace("bundle", f"{given}/bundle").replace("cells", f"{given}/cells").split()
    code, said = job.run([SCRIPTS / program, *arguments], out=tmp_path, shim={})
    assert code == 1
    assert said.startswith("error: no folder for temporary files can be written: name one in TMPDIR (")
    assert said.count("\n") == 1


@pytest.mark.parametrize("option", ["--json", "--junit", "--history"])
def test_an_output_that_cannot_be_written_is_refused_before_a_long_measurement(
    option: str, given: Path, tmp_path: Path
) -> None:
    command = [str(SCRIPTS / "cervix-parity"), "--model", f"{given}/bundle", option, f"{tmp_path}/none/file"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: cannot write {tmp_path}/none/file: no such folder\n")


HOLD = """
import sys, time
from pathlib import Path
from cervix_engine.locks import PlaceLock, PlaceTakenError
lock = PlaceLock(Path(sys.argv[1]))
try:
    lock.acquire()
except PlaceTakenError as taken:
    sys.exit(f"taken{taken}")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
lock.release()
"""


@pytest.mark.parametrize("refused", [{}, {"SHIM_FLOCK": "38"}, {"SHIM_FLOCK": "37"}, {"SHIM_FLOCK": "95"}])
def test_a_place_is_held_by_one_process_until_it_dies(refused: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, **shim_in(tmp_path), **refused}
    (tmp_path / "place").mkdir()
    lock = tmp_path / "place" / "lock"

    def hold(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(lock), str(seconds)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def outcome(process: subprocess.Popen[str]) -> str:
        said, complained = process.communicate(timeout=60)
        return said.strip() or complained.strip().splitlines()[-1]

    first = hold(60)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    assert outcome(hold(0)) == "taken"
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    assert outcome(hold(0)) == "held"
    assert {path.name for path in lock.parent.iterdir()} == {"lock"}


def test_a_place_that_another_machine_may_hold_says_what_to_remove(tmp_path: Path) -> None:
    environment = {**os.environ, **shim_in(tmp_path), "SHIM_FLOCK": "37"}
    held = tmp_path / "lock.held"
    held.write_text("4242\nanother-machine\n")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock"), "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == f"taken (process 4242 on another-machine: if that is gone, remove {held})"
