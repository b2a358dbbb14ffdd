"""What the commands say of their work: lines on standard error, and details in a file where one is named.

Names of tiles can identify patients, so only that file has them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cervix_engine.errors import OutputError


class _Echo(logging.Handler):
    """Writes through click, which finds today's stderr: tests and progress bars replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        click.echo(prefix + self.format(record), err=True)


@contextmanager
def log_lines(package: str) -> Iterator[None]:
    """Show what a package logs from INFO on as lines on standard error."""
    logger = logging.getLogger(package)
    handler, level = _Echo(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def debug_log(path: Path | None) -> Iterator[None]:
    """Append everything that the engine logs to `path`; None logs nowhere.

    Raises:
        OutputError: the file cannot be written.
    """
    package = logging.getLogger("cervix_engine")
    if path is None:
        yield
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise OutputError(f"cannot write the log {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = package.level
    package.setLevel(logging.DEBUG)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()
