"""A lock on a place that only one process may work on, on any file system."""

from __future__ import annotations

import errno
import logging
import socket
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from cervix_engine.files import UNSUPPORTED

log = logging.getLogger(__name__)

# Network file systems without a lock service say the last of these.
_NO_LOCKS = UNSUPPORTED | {errno.ENOLCK}


class PlaceTakenError(Exception):
    """Another process holds the lock; the message is what to do about it, where there is something."""


class PlaceLock:
    """Held from `acquire` to `release`, or until the process dies, since it is the kernel's.

    Where a file system has no locks, a file that names the process stands for one: the next start removes it if that
    process is gone, but cannot tell for one of another machine.

    Args:
        path: of the lock's file, which stays.
    """

    def __init__(self, path: Path) -> None:
        self._held = path.with_name(f"{path.name}.held")
        self._lock: FileLock | SoftFileLock = FileLock(path, blocking=False, fallback_to_soft=False)

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            PlaceTakenError: another process has it.
            OSError: the file cannot be written.
        """
        try:
            try:
                self._lock.acquire()
            except Timeout:  # before OSError, which it is
                raise
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                self._lock = SoftFileLock(self._held, blocking=False)
                self._lock.acquire()
                log.warning(
                    "this file system has no locks (%s): the file %s keeps others away meanwhile; remove it after a "
                    "kill on another machine",
                    error.strerror,
                    self._held.name,
                )
        except Timeout as error:
            raise PlaceTakenError(_remedy(self._held)) from error

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


def _remedy(held: Path) -> str:
    """What to do where the place is held by a process of another machine, of which nobody here can tell if it lives."""
    try:
        process, machine = held.read_text(encoding="utf-8").splitlines()[:2]
    except (OSError, ValueError):
        return ""
    gone = f" (process {process} on {machine}: if that is gone, remove {held})"
    return "" if machine == socket.gethostname() else gone
