"""CUDA as far as the lanes see it, on plain memory: devices, streams, events, graphs, pinned and device memory.

What is put on a stream waits there. Where nothing hurries, it is done only when somebody waits for it: the host by
`sync`, or other work that needs it, and then nothing else is done. With `hurry`, it is also done by chance whenever it
may be, up to at once, and some streams hurry more than others. Either way only the order that streams and events demand
is kept, so an event that is missing, an address that is wrong, a copy that is left out or memory that is used again too
early shows as wrong answers.

Memory holds garbage until it is written, and again once it is freed. Work on a device is put by a thread for which that
device is current; the public names and their parameters are those of the real `cuda.core`, which a test compares.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from engine.backends.simulated_core import Stream

Memory = npt.NDArray[np.uint8]
Run = Callable[[], None]

# Whether work can be captured into a graph: it can; it is refused when it is put; or what was captured is worthless.
Capture = Literal["works", "refused", "broken"]

PORTABLE = 1


class Result(IntEnum):
    """Of a call of the driver."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712


CAPTURE_MODES = ("global", "thread_local", "relaxed")
NEVER_WRITTEN, FREED = 0xA5, 0xDD

_HANDLES = count(7000)


class CudaError(Exception):
    """Such as `CUDA_ERROR_OUT_OF_MEMORY: …`; cuda-core has a type of its own too."""


OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY: the API call failed because it was unable to allocate enough memory"
CAPTURE_INVALIDATED = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: the operation invalidated the capture sequence"


@dataclass(eq=False, slots=True)
class Work:
    """Something to do once all that it needs is done."""

    run: Run
    needs: list[Work]
    hurry: float = 0.0
    done: bool = False

    def finish(self) -> None:
        """Do it and what it needs, and nothing else."""
        if self.done:
            return
        for other in self.needs:
            other.finish()
        self.done, run = True, self.run
        self.needs, self.run = [], _nothing
        run()


def _nothing() -> None:
    return None


def _again(error: Exception) -> Exception:
    """The same without its traceback, whose frames hold slots: Python finds no cycle that leads through an array."""
    return type(error)(*error.args)


class Cuda:
    """The driver of a machine.

    Args:
        devices: how many it has.
        memory_bytes: how much memory a device has; where none is given, it never ends.
        hurry: how likely work that may be done is done before somebody waits for it.
        seed: of that chance.
        capture: whether work can be captured.

    Attributes:
        used_bytes: memory in use, by device.
        pinned_bytes: pinned memory in use.
        registered: memory of others that is page-locked: its sizes by where it begins.
        graphs: how many were completed.
        broken: what became of work that failed.
    """

    def __init__(
        self,
        devices: int,
        *,
        memory_bytes: Mapping[int, int] | None = None,
        hurry: float = 0.0,
        seed: int = 0,
        capture: Capture = "works",
    ) -> None:
        self.lock = threading.RLock()
        self.capture = capture
        self.used_bytes = [0] * devices
        self.pinned_bytes = 0
        self.registered: dict[int, int] = {}
        self.graphs = 0
        self.broken: Exception | None = None
        self._limits = dict(memory_bytes or {})
        self._memory: dict[int, tuple[Memory, int | None]] = {}
        self._usable: set[int] = set()
        self._streams: dict[int, Stream] = {}
        self._waiting: list[Work] = []
        self._hurry, self._random = hurry, random.Random(seed)
        self._thread = threading.local()
        self._faults: dict[str, tuple[int, Exception]] = {}

    # ---- what `cuda.bindings.driver` offers

    def driver_names(self) -> dict[str, Any]:
        return {
            "CU_MEMHOSTREGISTER_PORTABLE": PORTABLE,
            "CUresult": Result,
            "cuMemHostRegister": self._register,
            "cuMemHostUnregister": self._unregister,
        }

    def _register(self, p: int, bytesize: int, Flags: int) -> tuple[Result]:  # noqa: N803 - as in the driver
        self.require()
        assert Flags == PORTABLE, "another GPU could not copy from it"
        try:
            self.attempt("pinned")
        except CudaError:
            return (Result.CUDA_ERROR_INVALID_VALUE,)
        if p in self.registered:
            return (Result.CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,)
        self.registered[p] = bytesize
        return (Result.CUDA_SUCCESS,)

    def _unregister(self, p: int) -> tuple[Result]:
        self.require()
        del self.registered[p]
        return (Result.CUDA_SUCCESS,)

    def is_registered(self, memory: Memory) -> bool:
        """Whether the device may copy from host memory by itself."""
        at = memory.ctypes.data
        return any(begin <= at and at + memory.nbytes <= begin + size for begin, size in self.registered.items())

    # ---- what runtimes ask

    def stream(self, handle: int) -> Stream:
        return self._streams[handle]

    @property
    def current(self) -> int | None:
        """The device that is current for this thread."""
        return getattr(self._thread, "device", None)

    def memory(self, address: int, *, ordinal: int) -> Memory:
        """What lies at an address of a device."""
        memory, device = self._memory[address]
        assert device == ordinal, f"memory of device {device} is used on device {ordinal}"
        return memory

    def require_usable(self, *memories: npt.NDArray[Any]) -> None:
        """Device memory may be used from where its stream allocates it to where that stream frees it."""
        for memory in memories:
            usable = memory.ctypes.data in self._usable or self.is_registered(memory)
            assert usable, "used before it is allocated, or freed"

    # ---- faults

    def fail(self, call: str, error: Exception, *, after: int = 0) -> None:
        """Let all calls but the first ones raise: of `load`, `copy`, `compute`, `event`, `stream` or `pinned`."""
        self._faults[call] = (after, error)

    def heal(self) -> None:
        self._faults.clear()

    def attempt(self, call: str) -> None:
        with self.lock:
            left, error = self._faults.get(call, (1, None))
            if error is not None and left == 0:
                raise _again(error)
            if error is not None:
                self._faults[call] = (left - 1, error)

    # ---- for the objects of `simulated_core.py`

    def enter(self, ordinal: int) -> None:
        self._thread.device = ordinal

    def require(self, ordinal: int | None = None) -> None:
        """For this thread, a device is current: this one, or any."""
        assert self.current is not None, "this thread has no CUDA context"
        assert ordinal in (None, self.current), f"device {self.current} is current, the work is for {ordinal}"

    def begin_capture(self, stream: Stream | None) -> None:
        self._thread.capturing = stream

    def require_no_capture(self) -> None:
        """Calls that wait or allocate make a capture by the same thread worthless."""
        stream: Stream | None = getattr(self._thread, "capturing", None)
        if stream is not None:
            stream.invalidate()
            raise CudaError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: not permitted when a stream is capturing")

    def add_stream(self, stream: Stream) -> float:
        """Returns how likely its work is done before somebody waits for it."""
        self._streams[stream.handle] = stream
        return self._random.choice((0.0, self._hurry, 1.0)) if 0 < self._hurry < 1 else self._hurry

    def put(self, work: Work) -> None:
        with self.lock:
            self._waiting.append(work)
            for other in self._waiting:
                ready = all(need.done for need in other.needs)
                if ready and not other.done and self._random.random() < other.hurry:
                    self._do(other)
            self._waiting = [other for other in self._waiting if not other.done]

    def copy(self, target: Memory, source: Memory) -> None:
        self.require_usable(target, source)
        np.copyto(target, source)

    def finish(self, work: Work | None) -> None:
        with self.lock:
            if work:
                self._do(work)
            if self.broken:
                raise _again(self.broken)

    def _do(self, work: Work) -> None:
        """As in CUDA, work that fails is heard of by whoever waits next, and everybody after that."""
        try:
            work.finish()
        except Exception as error:  # noqa: BLE001 - raised in `finish`
            self.broken = self.broken or _again(error)

    def allocate(self, size: int, ordinal: int | None) -> Memory:
        memory = np.full(size, NEVER_WRITTEN, np.uint8)
        with self.lock:
            if ordinal is None:
                self.pinned_bytes += size
                self._usable.add(memory.ctypes.data)
            elif self.used_bytes[ordinal] + size > self._limits.get(ordinal, 1 << 62):
                raise CudaError(OUT_OF_MEMORY)
            else:
                self.used_bytes[ordinal] += size
            self._memory[memory.ctypes.data] = (memory, ordinal)
        return memory

    def give(self, memory: Memory) -> None:
        """What a stream does where it comes to an allocation: until then, the memory may be somebody else's."""
        memory.fill(NEVER_WRITTEN)
        self._usable.add(memory.ctypes.data)

    def free(self, memory: Memory, stream: Stream | None) -> None:
        """In the order of the stream; pinned memory at once. Its address is never given again."""
        with self.lock:
            if stream is None:
                self.pinned_bytes -= memory.size
                self._take(memory)
            else:
                self.used_bytes[stream.ordinal] -= memory.size
                stream.append(partial(self._take, memory))

    def _take(self, memory: Memory) -> None:
        memory.fill(FREED)
        self._usable.discard(memory.ctypes.data)
