"""Runs `cervix-batch` again and again in children of its own, each with one fault, and says what each one left.

A program and no test: forking is only safe in a process that has no threads, which a test session is not, and a
loaded ONNX Runtime neither. So the model is the fake backend; everything else is the real command. BUNDLE must have the
fake backend's answers.

`python -m engine.run.faults MODE TILES BUNDLE SCRATCH TABLE` prints one JSON object a fault; TABLE is a file's
name, such as `preds.csv`, or a folder's:

    at, step        where the fault was, such as 17, "fsync shard-000000002.csv"
    code, table     exit code (-9: killed) and table ("none", "old", "new" or "broken") behind the fault
    verdict         what `cervix-verify` says of the table
    again           the same of the next, undisturbed start, and what then lies in the folder
    stderr          of the first run

Modes: `error` fails one step with EIO, `denied` with EACCES, `full` fails one and all later ones with ENOSPC, `short`
lets a write take half of its bytes before the disk is full, `unreadable` fails opening or reading one tile, `kill` is
SIGKILL at a step, `error-old` and `kill-old` are the same with an old table to overwrite, `kill-commit` only from the
table's assembly on, `kill-retry` with one whose failed rows are predicted again, `limit` caps the size of every file,
so that real writes end in their middle, and `random` kills at random times. `trace` only prints the steps of an
undisturbed run.

Steps are what a run does in the table's folder, and how it lists the tiles; see `injector.py`. For kills, only what
changes something.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from cervix_engine.cli.batch import main as cervix_batch
from cervix_engine.errors import UsageError
from cervix_engine.run.batch import RunSetup
from cervix_engine.run.shards import ShardSize
from cervix_engine.run.stream.fork_server import fork_server
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.verify import verify_table
from engine.run.injector import CHANGING, LISTING, MARKS, InjectedRead, Injector, error, kill, short_write
from engine.run.support import beside, choose_fake, content, draw_folder, drawn_tile, run_setup, work_folder

BATCH, SHARD, CHUNK_ROWS = 2, ShardSize(tiles=4), 5
Watched = dict[str, frozenset[str]]
DONE, DEFECT = (0, 3), 99  # 3: some tiles are bad


@dataclass
class Child:
    """A forked run; its pipe carries standard output and error."""

    pid: int
    pipe: int

    def wait(self) -> tuple[int, str]:
        with os.fdopen(self.pipe, "rb") as file:
            text = file.read().decode()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), text


class Campaign:
    """Everything that the modes share: the command line, the folder and what the table must be."""

    replacing = "--overwrite"

    def __init__(self, tiles: str, bundle: str, scratch: str, table: str, *, setup: RunSetup) -> None:
        self.setup = setup
        self.tiles = tiles
        self.arguments = ["--model", bundle, "-b", str(BATCH), "-j", "2"]
        self.scratch = Path(scratch)
        self.out = self.scratch / "out" / table
        self.fresh()
        # Each run's own fork server starts as a copy of it, in milliseconds and not in a third of a second.
        fork_server()
        started = time.monotonic()
        code, text = self.start().wait()
        self.duration = time.monotonic() - started
        assert code in DONE, text
        self.expected = content(self.out)
        self.old_folder = self._older_run()
        self.old = content(self.old_folder / self.out.name)

    def _older_run(self) -> Path:
        """The finished table of a few other tiles."""
        folder, tiles = self.scratch / "old", self.scratch / "old tiles"
        draw_folder(tiles, 3, seed=9)
        folder.mkdir()
        code, text = self.start("--out", str(folder / self.out.name), tiles=str(tiles)).wait()
        assert code in DONE, text
        return folder

    def fresh(self, *, old: bool = False) -> None:
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir()
        if old:
            shutil.copytree(self.old_folder, self.out.parent, dirs_exist_ok=True)

    def start(
        self,
        *options: str,
        injector: Injector | None = None,
        limit: int | None = None,
        tiles: str | None = None,
        setup: RunSetup | None = None,
    ) -> Child:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            command = [tiles or self.tiles, *self.arguments, "--quiet", "--out", str(self.out), *options]
            self._run(writing, command, injector, limit, setup or self.setup)
        os.close(writing)
        return Child(pid, reading)

    def _run(
        self, pipe: int, command: list[str], injector: Injector | None, limit: int | None, setup: RunSetup
    ) -> NoReturn:
        code = DEFECT
        try:
            os.dup2(pipe, 1)
            os.dup2(pipe, 2)
            os.dup2(pipe, MARKS)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            if injector is not None:
                injector.install()
            cervix_batch(command, obj=setup)
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else DEFECT
        except BaseException:  # noqa: BLE001 - a defect: its traceback is the finding
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)

    @property
    def changes(self) -> Watched:
        """Every step that changes something."""
        return {os.fspath(self.out.parent): CHANGING}

    @property
    def steps(self) -> Watched:
        """Every step but the reading of tiles."""
        return {os.fspath(self.out.parent): CHANGING | LISTING, self.tiles: LISTING}

    def table(self) -> str:
        if not self.out.exists():
            return "none"
        found = content(self.out)
        return "new" if found == self.expected else "old" if found == self.old else "broken"

    def verdict(self) -> str:
        """In a child of its own: pyarrow reads with threads, and this process must have none."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writing, self._verdict().encode())
            os._exit(0)
        os.close(writing)
        return Child(pid, reading).wait()[1]

    def _verdict(self) -> str:
        try:
            findings = verify_table(self.out)
        except UsageError as error:
            return str(error)
        return ", ".join(finding.kind for finding in findings) or "as written"

    def again(self, *options: str) -> dict[str, Any]:
        code, text = self.start(*options).wait()
        left = sorted(beside(self.out))
        return {"code": code, "table": self.table(), "verdict": self.verdict(), "left": left, "stderr": text}


class RetryCampaign(Campaign):
    """The old table has a failed row, its tile was mended since, and the new table is that of a retry."""

    replacing = "--retry-failures"

    def __init__(self, tiles: str, bundle: str, scratch: str, table: str, *, setup: RunSetup) -> None:
        own = Path(scratch) / "study"
        shutil.copytree(tiles, own)
        super().__init__(str(own), bundle, scratch, table, setup=setup)
        shutil.copytree(self.out.parent, self.old_folder, dirs_exist_ok=True)
        self.old = self.expected
        (own / "tile_00008.JPG").write_bytes(drawn_tile(8))
        code, text = self.start(self.replacing).wait()
        assert code == 0, text
        self.expected = content(self.out)


def at_every_step(
    campaign: Campaign,
    fault: Callable[[], None],
    watched: Watched,
    *,
    lasting: bool = False,
    old: bool = False,
    stride: int = 1,
    first: int = 1,
) -> Iterator[dict[str, Any]]:
    options = (campaign.replacing,) if old else ()

    def start(at: int) -> Child:
        return campaign.start(*options, injector=Injector(watched, at, fault, lasting))

    return findings(campaign, start, old=old, steps=count(first, stride))


def findings(
    campaign: Campaign, start: Callable[[int], Child], *, old: bool, steps: Iterable[int]
) -> Iterator[dict[str, Any]]:
    """What becomes of runs, each with a fault at one step, until there are no more steps."""
    options = (campaign.replacing,) if old else ()
    for at in steps:
        campaign.fresh(old=old)
        code, text = start(at).wait()
        marked, _, stderr = text.partition("\n")
        if not marked.startswith("step: "):
            assert code in DONE, text
            return  # there are no more steps
        step, table = marked.removeprefix("step: "), campaign.table()
        yield {
            "at": at,
            "step": step,
            "code": code,
            "table": table,
            "verdict": campaign.verdict(),
            "stderr": stderr,
            "rows": campaign.out.read_text("utf-8").splitlines() if table == "broken" else [],
            "again": campaign.again(*options),
        }


def at_every_write(campaign: Campaign) -> Iterator[dict[str, Any]]:
    watched = {os.fspath(campaign.out.parent): frozenset({"write"})}
    return at_every_step(campaign, short_write(), watched, lasting=True)


def at_every_tile(campaign: Campaign) -> Iterator[dict[str, Any]]:
    """Also says which rows are not those of an undisturbed run."""
    assert isinstance(campaign.expected, bytes)
    expected = campaign.expected.decode().splitlines()
    campaign.arguments[-1] = "1"  # decode worker, so that every run reads the tiles in the same order

    def start(at: int) -> Child:
        read = InjectedRead(campaign.tiles, at)
        return campaign.start(setup=replace(campaign.setup, steps=TileSteps(read)))

    for finding in findings(campaign, start, old=False, steps=count(1)):
        rows = finding["rows"]
        assert len(rows) == len(expected), finding
        yield {**finding, "rows": [row for row, other in zip(rows, expected, strict=True) if row != other]}


def at_every_size(campaign: Campaign) -> Iterator[dict[str, Any]]:
    for limit in range(0, 6000, 61):
        campaign.fresh()
        code, text = campaign.start(limit=limit).wait()
        table = campaign.table()
        if code in DONE:
            assert table == "new", text
            return  # no file is larger
        yield {"at": limit, "step": "", "code": code, "table": table, "stderr": text, "again": campaign.again()}


def at_random_times(campaign: Campaign, *, kills: int, seed: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(seed)
    campaign.fresh()
    done = 0
    while done < kills:
        child = campaign.start()
        time.sleep(chance.uniform(0, 0.8 * campaign.duration))
        os.kill(child.pid, signal.SIGKILL)
        code, text = child.wait()
        table = campaign.table()
        last = done == kills - 1 or table != "none"
        done += code == -signal.SIGKILL
        shards = len(list(work_folder(campaign.out).glob("shard-*")))
        yield {
            "at": done,
            "step": f"{shards} shards",
            "code": code,
            "table": table,
            "stderr": text,
            "again": campaign.again() if last else None,
        }
        if last:
            campaign.fresh()


def assembling(campaign: Campaign) -> int:
    """The step at which the table of a run that replaces another one begins to be assembled."""
    named: list[str] = steps(campaign, old=True)["steps"]
    return named.index("mkdir table" if campaign.out.is_dir() else "open table.csv") + 1


def steps(campaign: Campaign, *, old: bool = False) -> dict[str, Any]:
    campaign.fresh(old=old)
    options = (campaign.replacing,) if old else ()
    code, text = campaign.start(*options, injector=Injector(campaign.changes)).wait()
    named = [line.removeprefix("step: ") for line in text.splitlines() if line.startswith("step: ")]
    return {"code": code, "steps": named}


def not_synced(_: object) -> None:
    """In place of `os.fsync`: kills and errors are tested, not power cuts; that it is called is seen by `trace`."""


def main() -> None:
    mode, tiles, bundle, scratch, table = sys.argv[1:]
    os.fsync = not_synced  # type: ignore[assignment]
    setup = run_setup(choose=choose_fake, shard=SHARD, chunk_rows=CHUNK_ROWS)
    campaign = (RetryCampaign if mode.endswith("retry") else Campaign)(tiles, bundle, scratch, table, setup=setup)
    assert len(os.listdir("/proc/self/task")) == 1, "forking needs a process without threads"  # noqa: PTH208
    # Each child imports pyarrow anew, since it starts threads: fewer of them.
    stride = 3 if table.endswith((".csv", ".gz", ".jsonl")) else 7
    modes: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
        "error": lambda: at_every_step(campaign, error(errno.EIO), campaign.steps, stride=2),
        "error-old": lambda: at_every_step(campaign, error(errno.EIO), campaign.changes, old=True, stride=5),
        "denied": lambda: at_every_step(campaign, error(errno.EACCES), campaign.steps, stride=4),
        "full": lambda: at_every_step(campaign, error(errno.ENOSPC), campaign.changes, lasting=True, stride=3),
        "short": lambda: at_every_write(campaign),
        "kill": lambda: at_every_step(campaign, kill, campaign.changes),
        "kill-old": lambda: at_every_step(campaign, kill, campaign.changes, old=True, stride=2),
        "kill-commit": lambda: at_every_step(
            campaign, kill, campaign.changes, old=True, stride=stride, first=assembling(campaign)
        ),
        "kill-retry": lambda: at_every_step(campaign, kill, campaign.changes, old=True, stride=3),
        "unreadable": lambda: at_every_tile(campaign),
        "limit": lambda: at_every_size(campaign),
        "random": lambda: at_random_times(campaign, kills=15, seed=4),
        "trace": lambda: [steps(campaign)],
    }
    for finding in modes[mode]():
        print(json.dumps(finding))  # noqa: T201


if __name__ == "__main__":
    main()
