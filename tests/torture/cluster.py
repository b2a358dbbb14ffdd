"""Kills on a Ray cluster: actors, nodes and drivers, at random instants of runs that must end as if nobody had been.

Tables are files and folders by turns.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import cycle
from pathlib import Path

from engine.cluster.ray_cluster import RayCluster
from engine.cluster.slow_choice import PROGRAM
from engine.run.support import Content, beside, content, finished_files
from torture.kills import Tally

BATCH = 2
PAUSE_S = (0.5, 5.0)
# A run that takes longer hangs, however often something is killed and however busy the machine is.
MOST_S = 1800.0

ACTOR, NODE, DRIVER = "an actor", "a node's raylet", "the driver"


class ClusterRuns:
    """Runs of `cervix-batch` on a cluster, to one table after another.

    Args:
        cluster: running.
        tiles, bundle: what is run.
        folder: for the tables.
        expected: a local run's tables, by name.
    """

    def __init__(
        self, cluster: RayCluster, *, tiles: Path, bundle: Path, folder: Path, expected: dict[str, Content]
    ) -> None:
        self._cluster = cluster
        self._expected = expected
        self._folder = folder
        self._out = folder / "none yet"
        options: list[str | Path] = ["--model", bundle, "-b", str(BATCH), "--quiet"]
        self._command: list[str | Path] = [sys.executable, "-c", PROGRAM, cluster.address, tiles, *options]

    def at_random_instants(self, kills: Counter[str], *, seed: int, tally: Tally) -> None:
        """Kill so many of each, in random order, and compare every table."""
        chance, left = random.Random(seed), list(kills.elements())
        chance.shuffle(left)
        names = cycle(self._expected)
        while left and not tally.violations:
            shutil.rmtree(self._folder)
            self._folder.mkdir()
            self._out = self._folder / next(names)
            self._run(left, chance, tally)

    def _run(self, left: list[str], chance: random.Random, tally: Tally) -> None:
        driver, since = self._start(tally), time.monotonic()
        while driver.poll() is None and time.monotonic() - since < MOST_S:
            time.sleep(chance.uniform(*PAUSE_S))
            if left and self._computes() and self._kill(left[-1], driver):
                tally.kills[left.pop()] += 1
                if driver.poll() == -signal.SIGKILL:
                    driver = self._start(tally)
        hung = driver.poll() is None
        driver.kill()
        code = driver.wait()
        tally.tables += 1
        tally.require(not hung, f"a run hangs for {MOST_S} s")
        tally.require(code == 3, f"a run ended with {code}")
        same = self._out.exists() and content(self._out) == self._expected[self._out.name]
        tally.require(same, "the table is not that of a local run")
        tally.require(beside(self._out) == finished_files(self._out.name), f"left over is {sorted(beside(self._out))}")

    def _start(self, tally: Tally) -> subprocess.Popen[bytes]:
        tally.starts += 1
        command = [*self._command, "--out", self._out]
        return subprocess.Popen(command, env=self._cluster.environment, stderr=subprocess.DEVNULL)

    def _computes(self) -> bool:
        """Whether a run has begun and is not committed, so that a kill can cost something."""
        return (self._out.parent / f".{self._out.name}.cervix" / "journal.jsonl").exists()

    def _kill(self, what: str, driver: subprocess.Popen[bytes]) -> bool:
        if what == NODE:
            self._cluster.ask("lose")
            return True
        if what == DRIVER:
            driver.kill()
            return driver.wait() == -signal.SIGKILL
        for actor in self._cluster.ask("actors")[:1]:
            with suppress(ProcessLookupError):
                os.kill(actor, signal.SIGKILL)
                return True
        return False
