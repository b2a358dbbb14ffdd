"""The one seam between the engine and a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:  # it imports NumPy, which `--help` does without
    from cervix_engine.values import Pixels, Precision, Probabilities


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is really running, as read back from the runtime.

    Attributes:
        backend: the runtime's name in the register, such as `onnxruntime-cpu`, or `fake`.
        version: the runtime's version.
        device: such as `cpu`.
        device_class: the instruction set or compute capability that results may depend on.
        precision: that of the graph, or of the mode it is computed in.
        arithmetic: what the kernels really multiply in. ONNX Runtime's CPU provider has no half-precision kernels
            on x86: it computes an FP16 graph in FP32, with weights and tensors rounded to half.
        artefact, artefact_sha256: the file of the bundle that was loaded.
        threads: inference threads; they never depend on the decode workers.
        gpu: the GPU's name, or that of each; None on a CPU.
    """

    backend: str
    version: str
    device: str
    device_class: str
    precision: Precision
    arithmetic: Precision
    artefact: str
    artefact_sha256: str
    threads: int
    gpu: str | None = None

    @property
    def digits_depend_on(self) -> str:
        """The device as a row's last digits see it: kernels are chosen by a CPU's class, and by a GPU's very kind."""
        return f"{self.device_class}, {self.gpu}" if self.gpu else self.device_class


# Waits for the answers of a batch that was begun: `float32 (N, classes)`, which belong to the caller.
Pending: TypeAlias = "Callable[[], Probabilities]"


class Backend(Protocol):
    """A loaded model. Constructing is cheap; `with` loads it and frees it. One thread owns it.

    `infer` is all that most callers need. Who has many batches begins the next ones before it fetches the first
    one's answers, so that a GPU copies and computes at once.
    """

    @property
    def info(self) -> BackendInfo: ...

    @property
    def in_flight(self) -> int:
        """Batches that may be begun before the first one's answers are fetched; 1 where `begin` computes at once."""
        ...

    def pinned(self, pixels: Pixels) -> AbstractContextManager[None]:
        """While the block runs, batches that lie in the array `pixels` reach the device as soon as they can.

        Whoever has many batches in the same memory enters it once for all of them, and leaves that memory alone until
        the block has ended.
        """
        ...

    def begin(self, pixels: Pixels, *, batch: int = 0) -> Pending:
        """Begin a batch; its answers are fetched in the order in which batches were begun.

        Args:
            pixels: `uint8 (N, height, width, 3)`, RGB; left alone until the answers are fetched.
            batch: its number in the run: of several GPUs, always the same one takes it.

        Raises:
            InferenceError: the runtime failed; so may the fetching.
        """
        ...

    def infer(self, pixels: Pixels) -> Probabilities:
        """Compute `float32 (N, classes)` probabilities of `uint8 (N, height, width, 3)` RGB tiles.

        The result belongs to the caller; `pixels` may be reused as soon as this returns.

        Raises:
            InferenceError: the runtime failed.
        """
        ...

    def cancel(self) -> None:
        """Let what is being computed fail soon, as far as the runtime can; for any thread, while another one computes.

        A process that ends while a runtime's threads compute may crash.
        """
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def compute_at_once(backend: Backend, pixels: Pixels) -> int:
    """Compute the same batch as often as the backend works on batches at once; returns how many tiles that were."""
    pending = [backend.begin(pixels, batch=number) for number in range(backend.in_flight)]
    return sum(len(fetch()) for fetch in pending)


class Synchronous(ABC):
    """What a backend is that computes when it is asked: on a CPU, a batch takes all cores anyway."""

    in_flight = 1

    @abstractmethod
    def infer(self, pixels: Pixels) -> Probabilities:
        """See `Backend`."""

    def pinned(self, pixels: Pixels) -> AbstractContextManager[None]:  # noqa: ARG002 - all memory is as near
        return nullcontext()

    def cancel(self) -> None:  # noqa: B027 - where a runtime cannot, the batch is computed to its end
        """See `Backend`."""

    def begin(self, pixels: Pixels, *, batch: int = 0) -> Pending:  # noqa: ARG002 - the one device takes all
        answers = self.infer(pixels)
        return lambda: answers
