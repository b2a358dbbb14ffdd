"""Where the packages' log goes: lines on standard error as a command wants them, and details to a file that is named.

Names of tiles can identify patients, so only that file has them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import click

from cervix_engine.errors import OutputError


class _Echo(logging.Handler):
    """Writes through click, which finds today's stderr: tests and progress bars replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        click.echo(prefix + self.format(record), err=True)


@contextmanager
def log_lines(*packages: str) -> Iterator[None]:
    """Show what these packages log, from INFO on, as lines on standard error."""
    with ExitStack() as stack:
        for package in packages:
            stack.enter_context(_attached(_Echo(), logging.getLogger(package), logging.INFO))
        yield


@contextmanager
def debug_log(path: Path | None) -> Iterator[None]:
    """Append everything that the engine logs to `path`; None logs nowhere.

    Raises:
        OutputError: the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise OutputError(f"cannot write the log {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    with closing(handler), _attached(handler, logging.getLogger("cervix_engine"), logging.DEBUG):
        yield


@contextmanager
def _attached(handler: logging.Handler, logger: logging.Logger, level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
