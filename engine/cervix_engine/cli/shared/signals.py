"""SIGINT and SIGTERM: leave soon, whatever the process is doing, and leave something to go on from.

What is on disk is safe at every instant, so a process that cannot unwind in time simply ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

# Loading a model or computing a batch cannot be interrupted from Python; after this the process ends anyway.
GRACE_S = 1.5

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by SIGINT or SIGTERM.

    Attributes:
        exit_code: that the command ends with.
        kept: how much of its work is kept, as the start of a line; whoever knows says it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum
        self.kept = ""


def interruption(kept: str) -> str:
    """The line that an interrupted command ends with."""
    return f"interrupted: {kept}the same command goes on where this one stopped"


@contextmanager
def prompt_interruption(kept: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Raise `Interrupted` on a signal, and end the process after `GRACE_S` if the block has not been left by then.

    To be used in the main thread. `kept` says how much of the work is kept, and is called by any thread.
    """
    import socket  # here, as `--help` is to answer at once

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    left = threading.Event()
    # The C-level handler writes the signal's number here even while the main thread is inside a library call.
    previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    previous = {signum: signal.signal(signum, _raise) for signum in _SIGNALS}
    threading.Thread(
        target=_enforce, args=(reader, left, _stderr_descriptor(), kept), name="cervix-signals", daemon=True
    ).start()
    try:
        yield
    except Interrupted as error:
        error.kept = kept()
        raise
    finally:
        left.set()
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(previous_fd)
        writer.close()


def _raise(signum: int, _frame: FrameType | None) -> None:
    raise Interrupted(signum)


def _stderr_descriptor() -> int:
    try:
        return sys.stderr.fileno()  # not always 2: see `native_lines_logged`
    except (AttributeError, OSError):  # there is none, or a test's
        return 2


def _enforce(reader: socket.socket, left: threading.Event, stderr: int, kept: Callable[[], str]) -> None:
    with reader:
        while (number := reader.recv(1)) and number[0] not in _SIGNALS:
            pass
    if number and not left.wait(GRACE_S):
        with suppress(OSError):
            os.write(stderr, interruption(kept()).encode() + b"\n")
        os._exit(128 + number[0])
