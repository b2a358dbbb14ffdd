"""Shows how far a long pass over tiles is: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


@contextmanager
def meter(what: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many more tiles are done; it shows done, rate and time left."""
    if sys.stderr.isatty():
        with _bar(what, total) as advance:
            yield advance
    else:
        lines = Lines(what, total=total)
        yield lines.advance
        lines.finish()


class Lines:
    """Progress as log lines, the last one when all is done."""

    def __init__(self, what: str, *, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total, self._clock = what, total, clock
        self._started = self._shown = clock()
        self._done = 0

    def advance(self, tiles: int) -> None:
        self._done += tiles
        if self._clock() - self._shown >= LINE_EVERY_S:
            self._shown = self._clock()
            rate = self._rate()
            left = (self._total - self._done) / rate if rate else float("inf")
            log.info("%s: %d/%d tiles, %.1f tiles/s, %.0f s left", self._what, self._done, self._total, rate, left)

    def finish(self) -> None:
        seconds = self._clock() - self._started
        log.info("%s: %d tiles in %.1f s (%.1f tiles/s)", self._what, self._done, seconds, self._rate())

    def _rate(self) -> float:
        return self._done / max(self._clock() - self._started, 1e-9)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rate = TextColumn("{task.fields[rate]}")
    with Progress(*columns, rate, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, rate="")
        started, done = time.monotonic(), 0

        def advance(tiles: int) -> None:
            nonlocal done
            done += tiles
            rate = done / max(time.monotonic() - started, 1e-9)
            progress.update(task, completed=done, rate=f"{rate:.1f} tiles/s")

        yield advance
