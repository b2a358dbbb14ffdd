"""How an error leaves a command: one line on standard error and the exit code that `errors.py` lists."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import click

from cervix_engine.cli.shared.signals import Interrupted, interruption
from cervix_engine.errors import CervixError

P = ParamSpec("P")

INTERRUPTED = 130


def cervix_errors(command: Callable[P, int | None]) -> Callable[P, None]:
    """Decorate a command's function; place it right under `@click.command()` and its options.

    The function may return an exit code. A `CervixError` becomes `error: …`; anything else is a defect and
    keeps its traceback. The engine's warnings are shown, but to an option `quiet`.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from cervix_engine.cli.shared.logs import warning_lines  # here, as `--help` is to answer at once

        try:
            with warning_lines(shown=not kwargs.get("quiet")):
                code = command(*args, **kwargs)
        except CervixError as error:
            click.echo(f"error: {one_line(str(error))}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt as error:  # a plain one came before the command was ready for signals
            click.echo(interruption(error.kept if isinstance(error, Interrupted) else ""), err=True)
            sys.exit(error.exit_code if isinstance(error, Interrupted) else INTERRUPTED)
        sys.exit(code or 0)

    return run


def one_line(text: str) -> str:
    """A message without line ends and terminal codes."""
    # Names of files hold line ends, and terminal codes too.
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
