"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

PLAIN_EVERY_S = 15.0


@contextmanager
def batch_progress() -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with (tiles done, tiles found)."""
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("tiles", total=None, rate="")
        rate_at = _rate_meter()

        def update(done: int, found: int) -> None:
            bar.update(task, completed=done, total=found, rate=f"{rate_at(done):.0f} tiles/s")

        yield update


def _plain_lines() -> Callable[[int, int], None]:
    rate_at, last = _rate_meter(), time.monotonic()

    def update(done: int, found: int) -> None:
        nonlocal last
        rate, now = rate_at(done), time.monotonic()
        if not rate or now - last < PLAIN_EVERY_S:
            return
        last = now
        click.echo(f"{done}/{found} tiles, {rate:.1f} tiles/s, {(found - done) / rate:.0f} s left", err=True)

    return update


def _rate_meter() -> Callable[[int], float]:
    """Tiles a second since the first call; what was done by then may be an earlier run's."""
    first: tuple[int, float] | None = None

    def rate_at(done: int) -> float:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = (done, now)
        return (done - first[0]) / max(1e-9, now - first[1])

    return rate_at
