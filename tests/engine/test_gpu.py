"""The driver is asked, not trusted to be there."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from cervix_engine.gpu import Gpu, cuda_version, find_gpus


class Driver:
    """A driver with one A10; `failing` names a call that returns an error."""

    def __init__(self, failing: str = "") -> None:
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: 100) if name == self._failing else getattr(Driver, f"_{name}").__get__(self)

    def _cuInit(self, _: int) -> int:  # noqa: N802 - the driver's names
        return 0

    def _cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 1
        return 0

    def _cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal
        return 0

    def _cuDeviceGetName(self, name: Any, _: int, __: Any) -> int:  # noqa: N802
        name.value = b"NVIDIA A10"
        return 0

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, _: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 6}[attribute]
        return 0

    def _cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12080
        return 0


def test_gpus_have_name_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    assert find_gpus() == (Gpu("NVIDIA A10", "8.6"),)
    assert cuda_version() == "12.8"


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName"])
def test_a_driver_that_fails_has_no_gpus(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(failing=call))
    assert find_gpus() == ()


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert find_gpus() == ()
    assert cuda_version() is None


@pytest.mark.gpu
def test_the_driver_names_gpus() -> None:
    assert all(gpu.name and gpu.compute_capability for gpu in find_gpus())
    assert find_gpus()
