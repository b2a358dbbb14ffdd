"""What the commands of this package share: log lines on standard error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click


class _Echo(logging.Handler):
    """Writes through click, which finds today's stderr: tests and progress bars replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        click.echo(prefix + self.format(record), err=True)


@contextmanager
def log_lines() -> Iterator[None]:
    """Show this package's log from INFO on."""
    logger = logging.getLogger("cervix_train")
    handler, level = _Echo(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
