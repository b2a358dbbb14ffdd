"""What this machine is, in the words that certificates and run identities use."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Set
from functools import lru_cache
from pathlib import Path, PurePosixPath

from cervix_engine.version import __version__

# From the widest to the narrowest: kernels, and so last digits, are chosen by the first one present.
_INSTRUCTION_SETS = (
    ("amx_bf16", "amx"),
    ("avx512_bf16", "avx512-bf16"),
    ("avx512_vnni", "avx512-vnni"),
    ("avx512f", "avx512"),
    ("avx2", "avx2"),
)

# What version 1 of control groups says where there is no limit is this or a little less than 2^63.
_NO_LIMIT = 2**60


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags as Linux lists them; empty where that is unknown."""
    return frozenset(_cpuinfo("flags", "Features").split())


def cpu_model() -> str:
    """The CPU's name as its maker gives it; where that is unknown, its architecture."""
    return _cpuinfo("model name") or platform.machine() or "unknown"


def software() -> dict[str, str]:
    """What answers rest on besides the runtime: versions by name, the system and the CPU."""
    import cv2
    import numpy as np

    return {
        "cervix": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "os": platform.platform(),
        "cpu": cpu_model(),
    }


def cpu_class() -> str:
    """The class of CPU that results depend on, such as `cpu-amx` or `cpu-avx2`."""
    flags = cpu_flags()
    for flag, name in _INSTRUCTION_SETS:
        if flag in flags:
            return f"cpu-{name}"
    return f"cpu-{platform.machine()}"


def cpu_has_bf16(flags: Set[str] | None = None) -> bool:
    """Whether a CPU with these flags, default this one, multiplies BF16; else a runtime silently computes FP32."""
    return bool((cpu_flags() if flags is None else flags) & {"amx_bf16", "avx512_bf16"})


def cpu_has_vnni(flags: Set[str] | None = None) -> bool:
    """Whether a CPU with these flags, default this one, sums products of bytes in 32 bits, where none saturates."""
    return bool((cpu_flags() if flags is None else flags) & {"amx_int8", "avx512_vnni", "avx_vnni"})


def usable_cpus() -> int:
    """Cores that this process may run on, as far as its quota pays for them: a container can have less of both."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota())))


def cpu_quota(*, groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that the control groups of this process pay for, the fewest of any of them; infinity without a limit.

    Source: Linux, `Documentation/admin-guide/cgroup-v2.rst` (`cpu.max`) and `scheduler/sched-bwc.rst` (version 1).
    """
    return min((_quota_of(group) for group in _control_groups("cpu", groups, mounts)), default=math.inf)


def memory_left(*, groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the control groups of this process have left for it, what can be dropped from their cache included.

    Infinity without a limit: a machine that is merely full can swap, but beyond a group's limit the kernel kills.
    Source: Linux, `Documentation/admin-guide/cgroup-v2.rst` (`memory.max`, `memory.stat`) and `cgroup-v1/memory.rst`.
    """
    return min((_memory_left_in(group) for group in _control_groups("memory", groups, mounts)), default=math.inf)


def _control_groups(controller: str, groups: Path, mounts: Path) -> Iterator[Path]:
    """The folder of each group that `controller` has this process in, and of those above it, in both versions."""
    for line in _lines(groups):
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            group = PurePosixPath(path.strip("/"))
            # A container sees its own group at the mount, whatever path it is told.
            yield from (mounts / controllers / folder for folder in (group, *group.parents))


def _quota_of(group: Path) -> float:
    limits = " ".join(_lines(group / "cpu.max")).split()
    limits = limits or [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    if len(limits) != 2 or limits[0] in ("max", "-1"):
        return math.inf
    return int(limits[0]) / int(limits[1])


def _memory_left_in(group: Path) -> float:
    (limit,) = _lines(group / "memory.max") or _lines(group / "memory.limit_in_bytes") or ["max"]
    if limit == "max" or int(limit) >= _NO_LIMIT:
        return math.inf
    used = dict(line.split() for line in _lines(group / "memory.stat"))
    # Pages of processes and of shared memory; those of files can be dropped.
    held = ("anon", "shmem") if "anon" in used else ("total_rss", "total_shmem")
    return int(limit) - sum(int(used.get(kind, 0)) for kind in held)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _cpuinfo(*keys: str) -> str:
    """The first value of any of `keys` in Linux's list; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in keys:
            return value.strip()
    return ""
