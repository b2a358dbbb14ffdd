"""Where a scheduler may put a command: without a home, a terminal, a temporary folder, locks or folder fsync."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from preload import preloaded

# Nothing but $1 can be written: every other mount of this namespace is made read-only.
_READ_ONLY = """
out=$1; shift
mount --bind "$out" "$out" || exit 99
for at in $(awk '{print $2}' /proc/self/mounts | sort -ru); do
  case "$at" in "$out"|/proc*|/sys*|/dev|/dev/pts|/dev/mqueue) ;; *) mount -o remount,ro,bind "$at" 2>/dev/null ;; esac
done
mount -o remount,ro,bind / || exit 99
touch /tmp/.cervix-can-write 2>/dev/null && exit 99
cd / && exec "$@"
"""


@dataclass(frozen=True)
class Job:
    """What surrounds a command.

    Attributes:
        unset: variables that it does not have.
        variables: those that it has besides.
        closed: standard streams that are closed, such as `2>&-`.
        read_only: whether nothing but its output's folder can be written.
    """

    unset: tuple[str, ...] = ("HOME", "TMPDIR")
    variables: Mapping[str, str] = field(default_factory=dict)
    closed: str = ""
    read_only: bool = False

    def run(self, command: Sequence[str | Path], *, out: Path, shim: Mapping[str, str]) -> tuple[int, str]:
        """Run a command that may write in the folder `out`; its exit code and what it said on standard error."""
        said = out / ".said"
        shell = ["sh", "-c", f'exec "$@" 2>"$SAID" {self.closed}', "sh", *map(str, command)]
        prefix = ["unshare", "-m", "--propagation", "private", "sh", "-c", _READ_ONLY, "sh", str(out)]
        environment = {name: value for name, value in os.environ.items() if name not in self.unset}
        done = subprocess.run(
            [*(prefix if self.read_only else ()), *shell],
            env={**environment, **shim, **self.variables, "SAID": str(said)},
            stdout=subprocess.DEVNULL,
            cwd="/",
            timeout=300,
            check=False,
        )
        return done.returncode, said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""


JOBS = {
    "no home and an unknown user": Job(variables={"SHIM_NO_USER": "1"}),
    "a home that is not there": Job(unset=(), variables={"HOME": "/nonexistent"}),
    "closed standard error": Job(closed="2>&-"),
    "every standard stream closed": Job(closed="0<&- 1>&- 2>&-"),
    "nothing but the output's folder can be written": Job(read_only=True),
    "folders cannot be synced (EINVAL)": Job(variables={"SHIM_FSYNC": "22"}),
    "folders cannot be synced (ENOTSUP)": Job(variables={"SHIM_FSYNC": "95"}),
    "no locks (ENOSYS)": Job(variables={"SHIM_FLOCK": "38"}),
    "no locks (ENOLCK)": Job(variables={"SHIM_FLOCK": "37"}),
}


def skip_unless_possible(job: Job, folder: Path) -> None:
    """Skip, visibly, what this machine cannot be made to lack."""
    if job.read_only and job.run(["true"], out=folder, shim={})[0]:
        pytest.skip("needs a mount namespace for a read-only root: unshare -m is refused")


def shim_in(folder: Path) -> dict[str, str]:
    """The environment that lets calls be refused; see `cases/shim.c`."""
    return preloaded("shim", folder)
