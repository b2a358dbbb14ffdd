"""Whether the file systems that tiles lie on are still mounted."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cervix_engine.errors import ListingError

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mounts:
    """Tells a tile that cannot be read from a share that has gone, for tiles that may lie anywhere.

    Args:
        mountinfo: where Linux lists them, see `proc(5)`.
    """

    def __init__(self, mountinfo: Path = _MOUNTINFO) -> None:
        self._mountinfo = mountinfo
        self._devices = self._now()

    def require(self, path: str) -> None:
        """Raises ListingError where the file system that `path` lay on at the start is no longer there."""
        at = os.path.abspath(path)  # noqa: PTH100 - text
        while at not in self._devices and at != "/":
            at = os.path.dirname(at)  # noqa: PTH120
        if self._now().get(at) != self._devices.get(at) or not self._answers(at):
            raise ListingError(f"a file system that tiles lie on is gone or was replaced: {at}")

    @staticmethod
    def _answers(mount: str) -> bool:
        try:
            os.stat(mount)  # noqa: PTH116
        except OSError:
            return False
        return True

    def _now(self) -> dict[str, str]:
        """The device of each mount point; of those that are mounted over, the topmost one."""
        try:
            lines = os.fsdecode(self._mountinfo.read_bytes()).splitlines()
        except OSError:
            return {}
        fields = (line.split(" ") for line in lines)
        return {_ESCAPED.sub(lambda found: chr(int(found[1], 8)), field[4]): field[2] for field in fields}
