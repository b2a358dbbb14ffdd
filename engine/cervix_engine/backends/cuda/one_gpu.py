"""What the backends on one NVIDIA GPU have in common: batches go through lanes, and every failure is named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from cervix_engine.backends.base import BackendInfo, Pending
from cervix_engine.backends.cuda.lanes import IN_FLIGHT, GpuLanes
from cervix_engine.errors import BackendError, CervixError, InferenceError
from cervix_engine.values import Pixels, Probabilities


def cuda_core_error() -> str | None:
    """Why cuda-core, which all of them use, cannot be loaded; None where it can."""
    try:
        import cuda.core  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return str(error)
    return None


class OneGpu(ABC):
    """A backend on one GPU; each runtime says how it is loaded."""

    in_flight = IN_FLIGHT

    def __init__(self, info: BackendInfo) -> None:
        self.info = info
        self._lanes: GpuLanes | None = None

    @abstractmethod
    def _load(self) -> GpuLanes:
        """Load the model."""

    def pinned(self, pixels: Pixels) -> AbstractContextManager[None]:
        return self._open().pinned(pixels)

    def begin(self, pixels: Pixels, *, batch: int = 0) -> Pending:  # noqa: ARG002 - the one GPU takes all
        lanes, what = self._open(), f"on a batch of {len(pixels)}"
        with self._failures(what):
            pending = lanes.begin(pixels)

        def fetch() -> Probabilities:
            with self._failures(what):
                return pending()

        return fetch

    def infer(self, pixels: Pixels) -> Probabilities:
        return self.begin(pixels)()

    def cancel(self) -> None:  # noqa: B027 - a batch takes milliseconds: it is computed to its end
        """See `Backend`."""

    def __enter__(self) -> OneGpu:
        try:
            self._lanes = self._load()
        except CervixError:
            raise
        except Exception as error:  # the runtimes and CUDA raise types of their own
            raise InferenceError(f"{self.info.backend} cannot load {self.info.artefact}: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lanes:
            self._lanes.close()
        self._lanes = None

    def _open(self) -> GpuLanes:
        if self._lanes is None:
            raise RuntimeError("a backend was used outside of `with`")
        return self._lanes

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except BackendError:
            raise
        except Exception as error:  # as in __enter__
            raise InferenceError(f"{self.info.backend} failed {what}: {error}") from error
