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
        started = time.monotonic()

        def update(done: int, found: int) -> None:
            rate = done / max(1e-9, time.monotonic() - started)
            bar.update(task, completed=done, total=found, rate=f"{rate:.0f} tiles/s")

        yield update


def _plain_lines() -> Callable[[int, int], None]:
    started = last = time.monotonic()

    def update(done: int, found: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_EVERY_S:
            return
        last = now
        rate = done / (now - started)
        click.echo(f"{done}/{found} tiles, {rate:.1f} tiles/s, {(found - done) / rate:.0f} s left", err=True)

    return update
