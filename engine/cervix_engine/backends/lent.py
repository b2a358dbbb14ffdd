"""A loaded backend in the hands of a borrower, whose `with` neither loads nor frees it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from cervix_engine.backends.base import Backend, BackendInfo, Pending
from cervix_engine.values import Pixels, Probabilities


class Lent:
    """See `Backend`; the owner stays the one who frees it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def info(self) -> BackendInfo:
        return self._backend.info

    @property
    def in_flight(self) -> int:
        return self._backend.in_flight

    def pinned(self, pixels: Pixels) -> AbstractContextManager[None]:
        return self._backend.pinned(pixels)

    def begin(self, pixels: Pixels, *, batch: int = 0) -> Pending:
        return self._backend.begin(pixels, batch=batch)

    def infer(self, pixels: Pixels) -> Probabilities:
        return self._backend.infer(pixels)

    def cancel(self) -> None:
        self._backend.cancel()

    def __enter__(self) -> Lent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The owner frees it."""
