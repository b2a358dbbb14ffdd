"""What a job may lack, and a person at a terminal has: standard streams, and a folder for temporary files.

A scheduler may close streams, and a container may have nothing that can be written but the output's folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cervix_engine.errors import OutputError


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


def prepare_outputs(*files: Path | None, needs_scratch: bool = False) -> None:
    """Refuse, before any long work, what could not be written after it.

    Args:
        files: to be written; None for those that are not asked for.
        needs_scratch: whether the work needs a folder for temporary files; the outputs' one is taken if need be.

    Raises:
        OutputError: a file cannot be written, or there is no folder for temporary ones.
    """
    asked = [file for file in files if file is not None]
    for file in asked:
        if not _is_writable(file.absolute().parent):
            reason = "no permission" if file.absolute().parent.is_dir() else "no such folder"
            raise OutputError(f"cannot write {file}: {reason}")
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
