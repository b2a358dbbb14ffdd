"""`kill -9` at random instants and at every step, and the same command again until it is done.

Most runs are forked from this process, which has imported what the command needs but no runtime: ONNX Runtime's
threads begin in the child. `Executed` starts each run as a program of its own, so that all of its start-up can be
killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cervix_engine.run.assembly.run_folder import JOURNAL
from cervix_engine.run.batch import RunSetup
from engine.run.faults import DONE, SHARD, Campaign, at_every_step
from engine.run.injector import Injector, kill
from engine.run.support import FINISHED, beside, program_with_shards, work_folder

KILLED = -signal.SIGKILL
EXISTS = 2  # the exit code where the killed run had put its table in place, and only its farewell was missing

# Far more than a run takes: whatever is not over by then hangs.
HANGS_AFTER_S = 300.0


class Executed(Campaign):
    """The same command as a program of its own."""

    def _run(
        self, pipe: int, command: list[str], injector: Injector | None, limit: int | None, setup: RunSetup
    ) -> NoReturn:
        assert injector is None, "faults are injected into forked runs only"
        assert limit is None, "files are limited in forked runs only"
        os.dup2(pipe, 1)
        os.dup2(pipe, 2)
        os.execv(sys.executable, [sys.executable, "-c", program_with_shards(SHARD.tiles), *command])


@dataclass
class Tally:
    """What a campaign saw so far.

    Attributes:
        kills: by what lay on disk just after them.
        tables: that were finished and compared.
        starts: of the command.
        violations: where a table was not whole, not there or not the same, or a run ended in any other way.
    """

    kills: Counter[str] = field(default_factory=Counter)
    tables: int = 0
    starts: int = 0
    violations: list[str] = field(default_factory=list)

    def require(self, held: bool, what: str) -> None:
        if not held:
            self.violations.append(what)


def at_random_instants(campaign: Campaign, *, kills: int, seed: int, tally: Tally) -> None:
    """Kill runs at instants drawn evenly over the time of an undisturbed one, until there were `kills` of them.

    Each killed run is started again, and killed again, until it finishes. In every second round an old table is to be
    overwritten.
    """
    chance = random.Random(seed)
    wanted, old = tally.kills.total() + kills, False
    while tally.kills.total() < wanted and not tally.violations:
        campaign.fresh(old=old)
        while not _finishes(campaign, chance, tally, old=old, spare=tally.kills.total() >= wanted):
            pass
        tally.tables += 1
        old = not old


def at_every_point(campaign: Campaign, *, tally: Tally) -> None:
    """Kill at each step of a run in turn, without and with an old table to overwrite; the next start finishes it."""
    for old in (False, True):
        tell_kills(at_every_step(campaign, kill, campaign.changes, old=old), old=old, tally=tally)


def tell_kills(findings: Iterable[dict[str, Any]], *, old: bool, tally: Tally) -> None:
    """Count findings of kills at steps, and tell what is not as it must be."""
    for finding in findings:
        tally.starts += 2
        tally.kills[finding["step"].split()[0]] += 1
        tally.tables += 1
        again, before = finding["again"], "old" if old else "none"
        where = f"killed at {finding['step']}"
        tally.require(finding["code"] == KILLED, f"{where}: ended with {finding['code']}")
        tally.require(finding["table"] in (before, "new"), f"{where}: the table is {finding['table']}")
        tally.require(_verified(finding), f"{where}: cervix-verify says {finding['verdict']}")
        tally.require(again["table"] == "new", f"{where}: the next table is {again['table']}")
        tally.require(_verified(again), f"{where}: of the next table cervix-verify says {again['verdict']}")
        tally.require(set(again["left"]) == FINISHED, f"{where}: left over is {again['left']}")
        finished = finding["table"] == "new" and not old
        tally.require(again["code"] in DONE or (finished and again["code"] == EXISTS), f"{where}: {again}")


def _finishes(campaign: Campaign, chance: random.Random, tally: Tally, *, old: bool, spare: bool) -> bool:
    """Start once more; whether that was the last time."""
    tally.starts += 1
    child = campaign.start(*(["--overwrite"] if old else []))
    try:
        with _within(HANGS_AFTER_S):
            if not spare:
                time.sleep(chance.uniform(0, campaign.duration))
                os.kill(child.pid, signal.SIGKILL)
            code, text = child.wait()
    except TimeoutError:
        os.kill(child.pid, signal.SIGKILL)
        tally.require(False, "a run hangs")
        return True
    table = campaign.table()
    tally.require(table in ("old" if old else "none", "new"), f"after a kill the table is {table}")
    verdict = campaign.verdict()
    tally.require(_verified({"table": table, "verdict": verdict}), f"of a table cervix-verify says {verdict}")
    if code == KILLED:
        tally.kills[_phase(campaign, table)] += 1
        return bool(tally.violations) or (table == "new" and beside(campaign.out) == FINISHED)
    tally.require(code in DONE or (code == EXISTS and not old), f"ended with {code}: {text[-1000:]}")
    tally.require(table == "new", f"the finished table is {table}")
    tally.require(beside(campaign.out) == FINISHED, f"left over is {sorted(beside(campaign.out))}")
    return True


def _verified(finding: dict[str, Any]) -> bool:
    """Whether a table, where there is one, is as its report says, whenever the run was killed."""
    return bool(finding["table"] == "none" or finding["verdict"] == "as written")


def _phase(campaign: Campaign, table: str) -> str:
    """How far a killed run had come, by what it left."""
    if table == "new":
        return "behind the rename"
    folder = work_folder(campaign.out)
    try:
        journal = (folder / JOURNAL).read_bytes()
    except FileNotFoundError:
        return "while listing" if folder.exists() else "before the listing"
    return "in the commit" if b'"assembled"' in journal else "while predicting"


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so long. A forked child does not inherit the timer."""

    def late(_signum: int, _frame: object) -> NoReturn:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
