"""A machine with a simulated NVIDIA A10, which backends on GPUs find as they would a real one."""

from __future__ import annotations

import pytest

from engine.backends.simulated_gpu import Machine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    machine.install(monkeypatch)
    return machine
