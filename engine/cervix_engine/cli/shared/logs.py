"""Where the packages' log goes: lines on standard error as a command wants them, and details to a file that is named.

Names of tiles can identify patients, so only that file has them.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import click

from cervix_engine.errors import OutputError, OutputExistsError
from cervix_engine.files import output_errors, without_keys
from cervix_engine.version import __version__

log = logging.getLogger(__name__)


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
def warning_lines(*, shown: bool) -> Iterator[None]:
    """Show what the engine warns of as lines on standard error, or nowhere."""
    handler = _Echo(logging.WARNING) if shown else logging.NullHandler()
    logger = logging.getLogger("cervix_engine")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def debug_log(path: Path | None) -> Iterator[None]:
    """Append everything that the engine logs to `path`; None logs nowhere.

    Raises:
        OutputError: the file cannot be written.
    """
    if path is None:
        yield
        return
    _require_log(path)
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise OutputError(f"cannot write the log {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    with closing(handler), _attached(handler, logging.getLogger("cervix_engine"), logging.DEBUG), _command_logged():
        yield


def _require_log(path: Path) -> None:
    """Refuse to add lines to a file that is no log; a terminal or a pipe takes them."""
    with output_errors(f"cannot write the log {path}"):
        if not path.is_file():
            return
        with path.open("rb") as file:
            found = file.read(5)
    if found and not re.fullmatch(rb"\d{4}-", found):
        raise OutputExistsError(f"{path} is there already, and no log: name another file with --log-file")


@contextmanager
def _command_logged() -> Iterator[None]:
    began = time.monotonic()
    log.debug("cervix %s on %s: %s", __version__, platform.node(), command_line())
    try:
        yield
    finally:
        log.debug("ended after %.1f s", time.monotonic() - began)


def command_line() -> str:
    """What was typed, quoted as a shell takes it, without credentials; bytes that are not UTF-8 are spelt out."""
    typed = shlex.join([Path(sys.argv[0]).name, *map(without_keys, sys.argv[1:])])
    return typed.encode("utf-8", "backslashreplace").decode()


@contextmanager
def native_lines_logged() -> Iterator[None]:
    """Put what native code prints on descriptor 2 into the engine's log, and keep Python's stderr where it was.

    Decoders and runtimes print there whatever a command's `--quiet` says. They print into a pipe that never makes them
    wait: what does not fit in it is dropped, and it is read when the block ends.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # a job without one: nothing can be printed on it
        yield
        return
    messages, printed = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with _python_stderr_on(stderr):
            os.dup2(printed, 2)
            os.close(printed)
            try:
                yield
            finally:
                os.dup2(stderr, 2)
    finally:
        os.close(stderr)
        _log_native_lines(messages)


@contextmanager
def _python_stderr_on(descriptor: int) -> Iterator[None]:
    replaced = sys.stderr is not sys.__stderr__
    if replaced:  # by one that does not write to the descriptor
        yield
        return
    kept = sys.stderr
    kept.flush()
    with open(descriptor, "w", buffering=1, encoding=kept.encoding, errors=kept.errors, closefd=False) as moved:
        sys.stderr = moved
        try:
            yield
        finally:
            sys.stderr = kept


def _log_native_lines(messages: int) -> None:
    text = ""
    with suppress(BlockingIOError), open(messages, "rb", buffering=0) as pipe:
        while data := pipe.read(1 << 16):
            text += data.decode(errors="backslashreplace")
    for line in text.splitlines():
        log.debug("native: %s", line)


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
