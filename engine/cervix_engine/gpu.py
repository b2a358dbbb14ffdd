"""The NVIDIA GPUs of this machine, as the CUDA driver names them. Nothing is imported: the driver is a plain library.

Source: CUDA driver API, section "Device Management".
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_MAJOR, _MINOR = 75, 76
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its `name`, such as `NVIDIA H100 80GB HBM3`, `compute_capability`, such as `9.0`, and place in the
    driver's order."""

    name: str
    compute_capability: str
    ordinal: int = 0

    @property
    def capability(self) -> tuple[int, ...]:
        """Its compute capability as numbers to compare, such as (9, 0)."""
        return tuple(map(int, self.compute_capability.split(".")))

    @property
    def device_class(self) -> str:
        """As certificates name it, such as `cuda-sm90`."""
        return f"cuda-sm{self.compute_capability.replace('.', '')}"

    def is_like(self, other: Gpu) -> bool:
        """Whether both compute the same answers."""
        return (self.name, self.compute_capability) == (other.name, other.compute_capability)


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that the driver offers, in its order; none without a driver."""
    return gpus_of(load_driver())


def gpus_of(driver: Any) -> tuple[Gpu, ...]:
    """The GPUs of a driver, `libcuda` or None; none where it fails."""
    count = ctypes.c_int(0)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_gpus(driver, count.value))


def memory_gib(gpu: Gpu) -> float | None:
    """How much memory a GPU has, in GiB; None where the driver does not say."""
    return memory_gib_of(load_driver(), gpu.ordinal)


def memory_gib_of(driver: Any, ordinal: int) -> float | None:
    """The same of a driver, `libcuda` or None."""
    device, total = ctypes.c_int(0), ctypes.c_size_t(0)
    if (
        driver is None
        or driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), ordinal)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    ):
        return None
    return total.value / 2**30


def cuda_version() -> str | None:
    """The CUDA version that the driver supports, such as `13.0`; None without a driver."""
    return cuda_version_of(load_driver())


def cuda_version_of(driver: Any) -> str | None:
    """As `cuda_version`, of this driver."""
    version = ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    # The driver counts 13.1 as 13010.
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def load_driver(name: str = "libcuda.so.1") -> ctypes.CDLL | None:
    """The driver as a library; None where there is none."""
    with suppress(OSError):
        return ctypes.CDLL(name)
    return None


def _gpus(driver: Any, count: int) -> Iterator[Gpu]:
    for ordinal in range(count):
        device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        failed = (
            driver.cuDeviceGet(ctypes.byref(device), ordinal)
            or driver.cuDeviceGetName(name, _NAME_BYTES, device)
            or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
            or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        )
        if not failed:
            yield Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", ordinal)
