"""Which processes there are, as Linux tells it: decode workers, and whoever holds their slots."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.run.support import PATIENCE_S


def children_of(process: int) -> list[int]:
    """Its child processes that have not ended, the oldest first."""
    return sorted(child for child, parent, state in _processes() if parent == process and state != "Z")


def fork_servers_of(run: int) -> list[int]:
    """The processes that a run's decode workers are forked from."""
    return [child for child in children_of(run) if b"stream.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


def workers_of(run: int) -> list[int]:
    """The decode workers of a process."""
    return [worker for server in fork_servers_of(run) for worker in children_of(server)]


def all_end(processes: list[int]) -> bool:
    """Whether all of these end soon."""
    return _soon(lambda: not {process for process, _, state in _processes() if state != "Z"} & set(processes))


def holders_of_slots() -> set[int]:
    """Processes that hold a stream's slots, by a descriptor or in their memory."""
    return {process for process, _, _ in _processes() if _holds_slots(process)}


def slots_are_freed(*, but_for: set[int]) -> bool:
    """Whether nobody else holds any soon."""
    return _soon(lambda: holders_of_slots() <= but_for)


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


def _holds_slots(process: int) -> bool:
    folder = Path(f"/proc/{process}")
    try:
        if "memfd:cervix-slots" in (folder / "maps").read_text():
            return True
        return any("memfd:cervix-slots" in os.readlink(entry) for entry in (folder / "fd").iterdir())  # noqa: PTH115
    except OSError:  # it has just ended, or closed one
        return False
