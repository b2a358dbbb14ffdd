"""Run after run in one process: nothing that a run takes may stay."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from cervix_engine.errors import FailureBudgetExceeded
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.budget import FailureBudget

# Fitted over the last half of all runs; allocators and caches settle in the first. In thousands of runs, a kilobyte
# that each of them loses is seen.
MAX_GROWTH_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process held after a run."""

    rss_bytes: int
    descriptors: int
    threads: int


def soak(config: BatchConfig, *, runs: int, seconds: float) -> Iterator[Sample]:
    """Predict again and again, for at least so many runs and seconds. A bad tile must be among `config.tiles`.

    Every second run is stopped by its failure budget, and goes on in the next: what a failing run holds must go too.
    """
    until = time.monotonic() + seconds
    strict = replace(config, budget=FailureBudget(count=0))
    expected = b""
    for run in count(1):
        if run % 2:
            try:
                predict_folder(strict)
            except FailureBudgetExceeded:
                pass
            else:
                raise AssertionError("a run over its failure budget must stop")
        else:
            predict_folder(config)
            table = config.out.read_bytes()
            assert table == (expected or table), "every run must give the same table"
            expected = table
            config.out.unlink()
        yield sample()
        if run >= runs and time.monotonic() >= until:
            return


def sample() -> Sample:
    """What this process holds now: memory that was freed, but not yet given back to the system, is not held."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return Sample(pages * os.sysconf("SC_PAGE_SIZE"), descriptors, threading.active_count())


def growth_per_run(values: list[int]) -> float:
    """The slope of the line through the last half of the values."""
    half = values[len(values) // 2 :]
    return float(np.polyfit(np.arange(len(half)), half, 1)[0])


def growths(samples: list[Sample]) -> Iterator[str]:
    """What grew.

    Descriptors and threads: the most in the last half against the most in the first. RSS: by the line fitted through
    the last half.
    """
    middle = len(samples) // 2
    for what in ("descriptors", "threads"):
        values = [getattr(item, what) for item in samples]
        if max(values[middle:]) > max(values[:middle]):
            yield f"{what}: at most {max(values[:middle])} in the first half, {max(values[middle:])} in the last"
    slope = growth_per_run([item.rss_bytes for item in samples])
    total = slope * (len(samples) - middle)
    if total > MAX_GROWTH_BYTES:
        yield f"RSS: {slope:,.0f} bytes a run, {total:,.0f} over the last {len(samples) - middle} runs"
