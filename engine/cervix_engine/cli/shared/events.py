"""`--json`: what a run does, as events on standard output, one JSON object a line.

`start` once, `progress` with (done, found) at most once a second and when all is done, `done` with the run's report.
A run that fails prints no `done`; its error is the line on standard error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import click

SCHEMA = "cervix/event/1"
EVERY_S = 1.0


def emit(event: str, **values: Any) -> None:
    """Print one event."""
    click.echo(json.dumps({"schema": SCHEMA, "event": event, **values}, allow_nan=False))


def progress_events() -> Callable[[int, int], None]:
    """A function to call with (tiles done, tiles found)."""
    last: float | None = None

    def update(done: int, found: int) -> None:
        nonlocal last
        now = time.monotonic()
        if last is None or now - last >= EVERY_S or done == found:
            last = now
            emit("progress", done=done, found=found)

    return update
