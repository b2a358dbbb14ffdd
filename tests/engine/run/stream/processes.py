"""Which processes there are, as Linux tells it: decode workers, and whoever holds their slots."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from engine.run.support import PATIENCE_S


def children_of(process: int) -> list[int]:
    """Its child processes that have not ended, the oldest first."""
    return sorted(child for child, parent, state in _processes() if parent == process and state != "Z")


def fork_servers_of(run: int) -> list[int]:
    """The processes that a run's decode workers are forked from."""
    return [child for child in children_of(run) if _is_fork_server(child)]


def workers_of(run: int) -> list[int]:
    """The decode workers of a process."""
    return [worker for server in fork_servers_of(run) for worker in children_of(server)]


def is_running(process: int) -> bool:
    """Whether it has not ended, nor waits to be waited for."""
    return any(found == process and state != "Z" for found, _, state in _processes())


def send(signum: signal.Signals, *processes: int) -> bool:
    """Send a signal to processes, some of which may have ended; whether one got it."""
    got = False
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signum)
            got = True
    return got


def all_end(processes: list[int]) -> bool:
    """Whether all of these end soon."""
    return _soon(lambda: not {process for process, _, state in _processes() if state != "Z"} & set(processes))


def slots_of(process: int) -> set[str]:
    """What tells the slots that a process has in its memory from those of all others: their inodes."""
    try:
        maps = Path(f"/proc/{process}/maps").read_text()
    except OSError:  # it has just ended
        return set()
    return {line.split()[4] for line in maps.splitlines() if "memfd:cervix-slots" in line}


def are_freed(slots: set[str]) -> bool:
    """Whether nobody has these slots any more, soon."""
    return _soon(lambda: not any(slots & slots_of(process) for process, _, _ in _processes()))


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _processes() -> Iterator[tuple[int, int, str]]:
    """Process, parent and state."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            yield int(folder.name), int(fields[1]), fields[0]


def _is_fork_server(process: int) -> bool:
    try:
        return b"stream.worker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
