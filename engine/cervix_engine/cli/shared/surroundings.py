"""What a job may lack, and a person at a terminal has: standard streams, and a folder for temporary files.

A scheduler may close streams, and a container may have nothing that can be written but the output's folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path


def open_closed_streams() -> None:
    """Let what is written to a closed standard stream go nowhere; else the next file that is opened gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        _occupy(number)
        if getattr(sys, name) is None:
            # Of this process's life, like the stream that it stands for.
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115, PTH123


def _occupy(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        # A file gets the lowest number that is free, which is this one: those before it are taken by now.
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def prepare_outputs(
    *files: tuple[Path | None, bytes], inputs: Iterable[Path | None] = (), needs_scratch: bool = False
) -> None:
    """Refuse, before any long work, what could not be written after it, or must not be replaced.

    Args:
        files: to be written, and how each begins, as in `outputs.require_own`; None for those that are not asked for.
        inputs: files and folders that the command reads; None for those that are not asked for.
        needs_scratch: whether the work needs a folder for temporary files; the outputs' one is taken if need be.

    Raises:
        UsageError, OutputError: a file cannot be written, or there is no folder for temporary ones.
    """
    from cervix_engine.outputs.places import require_own

    given = list(inputs)
    for file, start in files:
        if file is not None:
            require_own(file, start, inputs=given)
    asked = [file for file, _ in files if file is not None]
    scratch_in(*(file.absolute().parent for file in asked))
    if needs_scratch:
        import tempfile

        from cervix_engine.files import scratch_errors

        with scratch_errors():
            tempfile.gettempdir()


def scratch_in(*folders: Path) -> None:
    """Where the machine has no folder for temporary files, take the first of these that can be written.

    It holds for this process's children too.
    """
    import tempfile  # here, as `--help` is to answer at once

    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        if writable := [folder for folder in folders if _is_writable(folder)]:
            os.environ["TMPDIR"] = os.fspath(writable[0])


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
