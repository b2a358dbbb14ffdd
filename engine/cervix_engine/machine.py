"""What this machine is, in the words that certificates and run identities use."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

from cervix_engine.version import __version__

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


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies BF16 in hardware; without it a runtime silently computes FP32."""
    return bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})


def cpu_has_vnni() -> bool:
    """Whether the CPU sums products of bytes in 32 bits, where they cannot saturate."""
    return bool(cpu_flags() & {"amx_int8", "avx512_vnni", "avx_vnni"})


def usable_cpus() -> int:
    """Cores that this process may run on, which a container can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
