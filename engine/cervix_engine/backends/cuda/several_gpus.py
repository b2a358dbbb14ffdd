"""Several GPUs of one kind behind one stream: batch k is always computed by the same one, at k mod n."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from types import TracebackType

import numpy as np

from cervix_engine.backends.base import Backend, BackendInfo, Pending
from cervix_engine.errors import InferenceError
from cervix_engine.gpu import Gpu
from cervix_engine.values import Pixels, Probabilities


def on_each(gpus: Sequence[Gpu], make: Callable[[Gpu], Backend]) -> Backend:
    """One backend for all of these GPUs."""
    backends = [make(gpu) for gpu in gpus]
    return backends[0] if len(backends) == 1 else SeveralGpus(backends)


class SeveralGpus:
    """One backend for each GPU; `with` loads all of them.

    Args:
        backends: of the same file, on GPUs that answer alike.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = backends
        self._loaded = ExitStack()

    @property
    def info(self) -> BackendInfo:
        first = self._backends[0].info
        return replace(first, device=f"{len(self._backends)} x {first.device}")

    @property
    def in_flight(self) -> int:
        return sum(backend.in_flight for backend in self._backends)

    def pinned(self, pixels: Pixels) -> AbstractContextManager[None]:
        return self._backends[0].pinned(pixels)  # which is for all of them

    def begin(self, pixels: Pixels, *, batch: int = 0) -> Pending:
        return self._backends[batch % len(self._backends)].begin(pixels)

    def infer(self, pixels: Pixels) -> Probabilities:
        """As `Backend`, by all of them: what is asked once, before a run begins, is asked of every GPU.

        Raises:
            InferenceError: one failed, or answers otherwise than the first.
        """
        pending = [backend.begin(pixels) for backend in self._backends]
        first, *others = (fetch() for fetch in pending)
        for number, answers in enumerate(others, 2):
            if not np.array_equal(answers, first):
                raise InferenceError(f"GPU {number} of the {len(self._backends)} answers otherwise than the first")
        return first

    def cancel(self) -> None:
        for backend in self._backends:
            backend.cancel()

    def __enter__(self) -> SeveralGpus:
        with ExitStack() as loading:
            for backend in self._backends:
                loading.enter_context(backend)
            self._loaded = loading.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded.__exit__(kind, error, trace)
