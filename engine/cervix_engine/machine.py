"""What this machine is, in the words that certificates and run identities use."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

# From the widest to the narrowest: kernels, and so last digits, are chosen by the first one present.
_INSTRUCTION_SETS = (
    ("amx_bf16", "amx"),
    ("avx512_bf16", "avx512-bf16"),
    ("avx512_vnni", "avx512-vnni"),
    ("avx512f", "avx512"),
    ("avx2", "avx2"),
)


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags as Linux lists them; empty where that is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def cpu_class() -> str:
    """The class of CPU that results depend on, such as `cpu-amx` or `cpu-avx2`."""
    flags = cpu_flags()
    for flag, name in _INSTRUCTION_SETS:
        if flag in flags:
            return f"cpu-{name}"
    return f"cpu-{platform.machine()}"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies BF16 in hardware; without it a runtime silently computes FP32."""
    return bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})


def usable_cpus() -> int:
    """Cores that this process may run on, which a container can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
