"""How an error leaves a command: one line on standard error and the exit code that `errors.py` lists."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from cervix_engine.cli.shared.signals import Interrupted, interruption
from cervix_engine.errors import CervixError

INTERRUPTED = 130


@contextmanager
def errors_as_exit_codes(*, quiet: bool = False) -> Iterator[None]:
    """Turn what leaves the block into a line and an exit code.

    A `CervixError` becomes `error: …`; anything else is a defect and keeps its traceback. Unless `quiet`, the engine's
    warnings are shown meanwhile.
    """
    from cervix_engine.cli.shared.logs import warning_lines  # here, as `--help` is to answer at once

    try:
        with warning_lines(shown=not quiet):
            yield
    except CervixError as error:
        click.echo(f"error: {one_line(str(error))}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:  # a plain one came before the command was ready for signals
        click.echo(interruption(error.kept if isinstance(error, Interrupted) else ""), err=True)
        sys.exit(error.exit_code if isinstance(error, Interrupted) else INTERRUPTED)


def one_line(text: str) -> str:
    """A message without line ends and terminal codes."""
    # Names of files hold line ends, and terminal codes too.
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
