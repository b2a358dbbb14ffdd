"""The driver is asked, not trusted to be there."""

from __future__ import annotations

from typing import Any

import pytest

from cervix_engine.gpu import Gpu, cuda_version_of, find_gpus, gpus_of, load_driver, memory_gib_of


class Driver:
    """A driver with A10s; `failing` names a call that returns an error, `lost` a GPU that cannot be asked."""

    def __init__(self, failing: str = "", *, gpus: int = 1, lost: int | None = None) -> None:
        self._failing, self._gpus, self._lost = failing, gpus, lost

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: 100) if name == self._failing else getattr(Driver, f"_{name}").__get__(self)

    def _cuInit(self, _: int) -> int:  # noqa: N802 - the driver's names
        return 0

    def _cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self._gpus
        return 0

    def _cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal
        return 100 if ordinal == self._lost else 0

    def _cuDeviceTotalMem_v2(self, total: Any, _: Any) -> int:  # noqa: N802
        total._obj.value = 24 * 2**30
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


def test_gpus_have_name_and_capability() -> None:
    assert gpus_of(Driver()) == (Gpu("NVIDIA A10", "8.6"),)
    assert cuda_version_of(Driver()) == "12.8"
    assert Gpu("NVIDIA A10", "8.6").capability == (8, 6)


def test_gpus_are_numbered_as_the_driver_does() -> None:
    a10s = [Gpu("NVIDIA A10", "8.6", ordinal) for ordinal in range(3)]
    assert list(gpus_of(Driver(gpus=3))) == a10s
    assert list(gpus_of(Driver(gpus=3, lost=1))) == [a10s[0], a10s[2]]


def test_the_same_model_is_alike_wherever_it_sits() -> None:
    a10 = Gpu("NVIDIA A10", "8.6")
    assert a10.is_like(Gpu("NVIDIA A10", "8.6", 3))
    assert not a10.is_like(Gpu("NVIDIA A40", "8.6"))
    assert not a10.is_like(Gpu("NVIDIA A10", "8.9"))


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName"])
def test_a_driver_that_fails_has_no_gpus(call: str) -> None:
    assert gpus_of(Driver(failing=call)) == ()


def test_without_a_driver_there_is_no_gpu() -> None:
    missing = load_driver("libcuda_that_is_not_there.so.1")
    assert missing is None
    assert gpus_of(missing) == ()
    assert cuda_version_of(missing) is None


@pytest.mark.gpu
def test_the_driver_names_gpus() -> None:
    assert all(gpu.name and gpu.compute_capability for gpu in find_gpus())
    assert find_gpus()


def test_a_gpu_has_the_memory_that_the_driver_says() -> None:
    assert memory_gib_of(Driver(), 0) == 24.0
    for driver in (None, Driver("cuInit"), Driver("cuDeviceGet"), Driver("cuDeviceTotalMem_v2"), Driver(lost=0)):
        assert memory_gib_of(driver, 0) is None
