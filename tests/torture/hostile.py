"""The real command over hostile folders: each file as specified, in bounded memory and time, and none without a row."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from cervix_engine.cli.batch import INCOMPLETE
from cervix_engine.run.record import RunRecord
from cervix_engine.tiles.formats.header import MAX_AREA_PX
from engine.run.support import read_table
from torture.corpus import FOLDER, IGNORED, OK, Hostile

WORKERS = 2
HANGS_AFTER_S = 600.0

# Each worker may hold the largest tile twice, with an alpha channel: as decoded, and decoded again to check it.
HEADROOM_BYTES = WORKERS * 2 * 4 * MAX_AREA_PX

# The process's own peak, since that which the kernel tells a parent includes the parent's memory from before the exec;
# and that of its largest decode worker, once they have ended.
_WITH_ITS_PEAKS = """
import atexit, pathlib, resource
def tell():
    print(pathlib.Path("/proc/self/status").read_text())
    print("workers:", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, "kB")
atexit.register(tell)
from cervix_engine.cli.batch import main
main()
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run of the command ended; `code` is negative where a signal ended it, and `peak_bytes` then 0.

    `peak_bytes` are its own and those of its largest decode worker.
    """

    code: int
    stderr: str
    peak_bytes: int
    seconds: float


def cervix_batch(*arguments: str | Path) -> Finished:
    """Run the command as a program of its own; kill it when it hangs."""
    started = time.monotonic()
    command = [sys.executable, "-c", _WITH_ITS_PEAKS, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_AFTER_S)
    except subprocess.TimeoutExpired:
        return Finished(-signal.SIGKILL, "it hung", 0, HANGS_AFTER_S)
    peaks = re.findall(r"^(?:VmHWM|workers):\s+(\d+) kB$", done.stdout, re.MULTILINE)
    return Finished(done.returncode, done.stderr, 1024 * sum(map(int, peaks)), time.monotonic() - started)


def predict(tiles: Path, *, model: Path, out: Path) -> Finished:
    """Run over a folder in which every tile may fail, and print errors only."""
    options = ("-j", str(WORKERS), "--max-failures", "100%", "--quiet")
    return cervix_batch(tiles, "--model", model, "--out", out, *options)


def outcomes(table: Path) -> dict[bytes, str]:
    """Path -> `ok` or the kind of failure, of each row.

    Raises:
        ValueError: two rows are of the same tile.
    """
    rows = read_table(table)
    found = {
        unquote_to_bytes(row["path"]): OK if row["status"] == "ok" else row["error"].partition(":")[0] for row in rows
    }
    if len(found) != len(rows):
        raise ValueError(f"{len(rows)} rows of {len(found)} tiles")
    return found


def judge(finished: Finished, things: list[Hostile], *, out: Path, ordinary: Finished) -> list[str]:
    """Where the run over planted `things` was not as specified."""
    violations = list(_of_the_run(finished, ordinary, wanted=INCOMPLETE))
    if not out.exists():
        return [*violations, f"no table: {finished.stderr[-500:]}"]
    seen = outcomes(out)
    wanted = {os.fsencode(thing.path): thing.outcome for thing in things if thing.outcome not in (IGNORED, FOLDER)}
    violations += _differences(wanted, seen)
    report = RunRecord.load(out.with_name(out.name + ".run.json"))
    ignored = sum(thing.outcome == IGNORED for thing in things)
    if (report.found, report.ignored) != (len(wanted), ignored):
        violations.append(f"found {report.found} of {len(wanted)} tiles, ignored {report.ignored} of {ignored} others")
    if report.ok + report.failed != report.found:
        violations.append(f"{report.ok} predicted and {report.failed} failed are not {report.found}")
    return violations


def cuts(tiles: Iterable[Path], root: Path, *, step: int = 64) -> dict[bytes, str]:
    """Write each tile cut at every `step`th byte below `root`; what must become of each file."""
    wanted: dict[bytes, str] = {}
    for tile in tiles:
        data = tile.read_bytes()
        folder = root / f"{tile.parent.name}-{tile.stem}"
        folder.mkdir(parents=True)
        for length in range(0, len(data), step):
            name = f"{length:06d}.jpg"
            (folder / name).write_bytes(data[:length])
            wanted[os.fsencode(f"{folder.name}/{name}")] = "truncated" if length else "empty"
    return wanted


def judge_cuts(finished: Finished, wanted: dict[bytes, str], *, out: Path, ordinary: Finished) -> list[str]:
    """Where a cut tile did not become a failed row of its kind."""
    differences = _differences(wanted, outcomes(out)) if out.exists() else ["no table"]
    return [*_of_the_run(finished, ordinary, wanted=INCOMPLETE), *differences]


def kinds(things: list[Hostile]) -> str:
    """How many there are of each outcome."""
    counted = Counter(thing.outcome for thing in things)
    return ", ".join(f"{count} {outcome}" for outcome, count in counted.most_common())


def refusals(scratch: Path, *, model: Path) -> Iterator[str]:
    """Where a run that must be refused as a whole was not, or not with one line."""
    scratch.mkdir()
    (scratch / "tiles").mkdir()
    (scratch / "tiles" / "notes.txt").write_text("no tile")
    (scratch / "file.jpg").write_bytes(b"")
    os.mkfifo(scratch / "fifo")
    (scratch / "loop").symlink_to("loop")
    out = scratch / "preds.csv"
    for tiles, table in (
        (scratch / "gone", out),
        (scratch / "tiles", out),
        (scratch / "file.jpg", out),
        (scratch / "fifo", out),
        (scratch / "loop", out),
        (scratch / "tiles", scratch / "tiles" / "preds.csv"),
        (scratch / "tiles", scratch / "fifo"),
        (scratch / "tiles", scratch / "tiles"),
    ):
        finished = predict(tiles, model=model, out=table)
        if finished.code != 2 or finished.stderr.count("\n") != 1 or out.exists():
            yield f"{tiles.name} to {table.name} ended with {finished.code}: {finished.stderr[-500:]}"


def _of_the_run(finished: Finished, ordinary: Finished, *, wanted: int) -> Iterator[str]:
    if finished.code != wanted:
        yield f"ended with {finished.code}, not {wanted}: {finished.stderr[-500:]}"
    if "Traceback" in finished.stderr:
        yield f"a traceback: {finished.stderr[-2000:]}"
    elif finished.code == wanted and finished.stderr:
        yield f"printed, though it was to be quiet: {finished.stderr[-500:]}"
    if finished.peak_bytes > ordinary.peak_bytes + HEADROOM_BYTES:
        yield f"{finished.peak_bytes:,} bytes, an ordinary run {ordinary.peak_bytes:,}, allowed {HEADROOM_BYTES:,} more"


def _differences(wanted: dict[bytes, str], seen: dict[bytes, str]) -> Iterator[str]:
    for path in sorted(wanted.keys() | seen.keys()):
        if wanted.get(path) != seen.get(path):
            yield f"{path!r} is {seen.get(path, 'without a row')}, must be {wanted.get(path, 'without a row')}"
