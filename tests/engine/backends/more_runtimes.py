"""Runtimes that the register does not list: fakes to survey, and two that a test adds to the register by their path."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np

from cervix_engine.backends.base import Backend, BackendInfo, Synchronous
from cervix_engine.backends.device import Device
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.backends.runtime import GraphRuntime
from cervix_engine.values import Pixels, Precision, Probabilities
from engine.run.support import reference_probabilities

NUMPY = ("numpy", "engine.backends.more_runtimes:NumPy")
INDIFFERENT = ("indifferent", "engine.backends.more_runtimes:Indifferent")


class Fake(GraphRuntime):
    """A runtime of graphs that looks into none of them.

    Args:
        name: what it is called.
        installed: its version; None where it is not installed.
        refuses: why it does not run a precision.
    """

    def __init__(
        self, name: str = "fake", *, installed: str | None = "1", refuses: Mapping[Precision, str] | None = None
    ) -> None:
        self.name = name
        self._installed = installed
        self._refuses = refuses or {}

    def version(self) -> str | None:
        return self._installed

    def objection(self, precision: Precision, _device: Device, /) -> str | None:
        return self._refuses.get(precision) if self._installed else f"{self.name} is not installed"

    def load(self, _graph: bytes, info: BackendInfo, _ordinal: int, /) -> Backend:
        return FakeBackend(info=info)


class NumPy(GraphRuntime):
    """Computes the tiny model of the tests, whatever graph it is given."""

    name = "numpy"

    def version(self) -> str | None:
        return np.__version__

    def objection(self, precision: Precision, _device: Device, /) -> str | None:
        return None if precision == "fp32" else f"NumPy has no {precision}"

    def load(self, _graph: bytes, info: BackendInfo, _ordinal: int, /) -> Backend:
        return _Loaded(info)


class Indifferent(NumPy):
    """Gives every tile the same answer, in a mode that nobody asked for."""

    name = "indifferent"

    def objection(self, precision: Precision, _device: Device, /) -> str | None:
        return None if precision == "bf16" else f"it has no {precision}"


class _Loaded(Synchronous):
    def __init__(self, info: BackendInfo) -> None:
        self.info = info

    def infer(self, pixels: Pixels) -> Probabilities:
        if self.info.backend == Indifferent.name:
            return np.full((len(pixels), 5), 0.2, np.float32)
        return reference_probabilities(pixels)

    def __enter__(self) -> _Loaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
