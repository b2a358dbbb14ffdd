"""A bundle for GPUs; no test may leave memory pinned."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cervix_engine.backends.cuda.pinned import _PINNED
from cervix_engine.bundle.bundle import Bundle
from engine.backends.simulated_gpu import make_engine_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_engine_bundle(tmp_path_factory.mktemp("lanes") / "bundle")


@pytest.fixture(autouse=True)
def no_memory_stays_pinned() -> Iterator[None]:
    yield
    assert len(_PINNED) == 0
