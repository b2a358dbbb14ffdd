"""The objects of `cuda.core` on a simulated GPU: devices, streams, events, graphs, buffers. See `simulated_cuda`."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from engine.backends.simulated_cuda import (
    _HANDLES,
    CAPTURE_INVALIDATED,
    CAPTURE_MODES,
    Cuda,
    CudaError,
    Run,
    Work,
    _nothing,
)


class Device:
    def __init__(self, cuda: Cuda, device_id: int) -> None:
        if not 0 <= device_id < len(cuda.used_bytes):
            raise ValueError(f"device_id must be within [0, {len(cuda.used_bytes)}), got {device_id}")
        self._cuda, self._ordinal = cuda, device_id

    def set_current(self, ctx: Any = None) -> None:
        self._cuda.enter(self._ordinal)

    def create_stream(self, obj: Any = None, options: Any = None) -> Stream:
        self._cuda.require(self._ordinal)
        return Stream(self._cuda, self._ordinal)

    def create_event(self, options: EventOptions | None = None) -> Event:
        self._cuda.require(self._ordinal)
        assert isinstance(options, EventOptions)
        assert options.blocking_sync, "a thread that spins takes a core from decoding"
        return Event(self._cuda, self._ordinal)

    def allocate(self, size: int, *, stream: Stream) -> Buffer:
        self._cuda.require(self._ordinal)
        self._cuda.require_no_capture()
        return Buffer(self._cuda, size, stream)


class PinnedMemory:
    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def allocate(self, size: int, *, stream: Stream | None = None) -> Buffer:
        self._cuda.require()
        self._cuda.require_no_capture()
        self._cuda.attempt("pinned")
        return Buffer(self._cuda, size, None)


class Buffer:
    """Device memory in a stream's order, or pinned memory."""

    def __init__(self, cuda: Cuda, size: int, stream: Stream | None) -> None:
        self._cuda, self._stream = cuda, stream
        self._ordinal = stream.ordinal if stream else None
        self.memory = cuda.allocate(size, self._ordinal)
        if stream:
            stream.append(partial(cuda.give, self.memory))

    @property
    def handle(self) -> int:
        return int(self.memory.ctypes.data)

    @property
    def size(self) -> int:
        return int(self.memory.size)

    def copy_from(self, src: Buffer | HostBuffer, *, stream: Stream, options: Any = None) -> None:
        assert src.size == self.size, f"{src.size} bytes do not fit {self.size}"
        assert {self._ordinal, src._ordinal} <= {None, stream.ordinal}, "memory of another device"
        self._cuda.attempt("copy")
        stream.put(partial(self._cuda.copy, self.memory, src.memory))

    def __del__(self) -> None:
        if hasattr(self, "memory"):
            self._cuda.free(self.memory, self._stream)


class HostBuffer:
    """Memory that somebody else has and the device may copy from; as `Buffer.from_handle` makes it."""

    def __init__(
        self, cuda: Cuda, ptr: int, size: int, mr: Any = None, owner: Any = None, *, stream: Any = None
    ) -> None:
        assert mr is None, "nobody frees it"
        self.memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(ptr))
        assert cuda.is_registered(self.memory), "a copy from ordinary memory would wait"
        self.owner = owner
        self._ordinal = None

    @property
    def handle(self) -> int:
        return int(self.memory.ctypes.data)

    @property
    def size(self) -> int:
        return int(self.memory.size)


@dataclass
class EventOptions:
    timing_enabled: bool | None = False
    blocking_sync: bool | None = False
    ipc_enabled: bool | None = False


class Event:
    def __init__(self, cuda: Cuda, ordinal: int) -> None:
        self._cuda, self.ordinal = cuda, ordinal
        self.mark: Work | None = None

    def sync(self) -> None:
        """As in CUDA, an event that was never recorded is waited for in no time."""
        self._cuda.require_no_capture()
        self._cuda.attempt("event")
        self._cuda.finish(self.mark)


class Stream:
    def __init__(self, cuda: Cuda, ordinal: int) -> None:
        self._cuda, self.ordinal = cuda, ordinal
        self._handle = next(_HANDLES)
        self._last: Work | None = None
        self._captured: list[Run] | None = None
        self._valid = True
        self._hurry = cuda.add_stream(self)

    @property
    def handle(self) -> int:
        return self._handle

    def sync(self) -> None:
        self._cuda.require_no_capture()
        self._cuda.attempt("stream")
        self._cuda.finish(self._last)

    def record(self, event: Event | None = None, options: EventOptions | None = None) -> Event:
        self._cuda.require(self.ordinal)
        assert event is not None
        assert event.ordinal == self.ordinal, "an event of another device"
        assert self._captured is None
        event.mark = self._last
        return event

    def wait(self, event_or_stream: Event | Stream) -> None:
        self._cuda.require(self.ordinal)
        assert self._captured is None
        other = event_or_stream
        self.append(_nothing, other.mark if isinstance(other, Event) else other._last)

    def create_graph_builder(self) -> GraphBuilder:
        return GraphBuilder(self._cuda, self)

    # ---- beyond `cuda.core`

    @property
    def is_capturing(self) -> bool:
        return self._captured is not None

    def put(self, run: Run) -> None:
        """Put work of this thread here; a stream that captures keeps it for the graph."""
        self._cuda.require(self.ordinal)
        if self._captured is None:
            self.append(run)
        else:
            self._captured.append(run)

    def append(self, run: Run, *needs: Work | None) -> None:
        with self._cuda.lock:
            before = [need for need in (self._last, *needs) if need and not need.done]
            self._last = Work(run, before, self._hurry)
            self._cuda.put(self._last)

    def invalidate(self) -> None:
        self._valid = False

    def begin_capture(self) -> None:
        self._captured, self._valid = [], True

    def end_capture(self) -> list[Run]:
        """What was captured; as a stream that captures nothing any more."""
        captured, self._captured = self._captured or [], None
        if not self._valid:
            raise CudaError(CAPTURE_INVALIDATED)
        return captured


class GraphBuilder:
    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        self._cuda, self._stream = cuda, stream
        self._work: list[Run] | None = None

    def begin_building(self, mode: str | None = "relaxed") -> GraphBuilder:
        assert mode in CAPTURE_MODES
        self._cuda.require(self._stream.ordinal)
        self._stream.begin_capture()
        self._cuda.begin_capture(self._stream)
        return self

    def end_building(self) -> GraphBuilder:
        self._cuda.begin_capture(None)
        if self._cuda.capture == "broken":
            self._stream.invalidate()
        self._work = self._stream.end_capture()
        return self

    def complete(self, options: Any = None) -> Graph:
        assert self._work is not None, "nothing was built"
        self._cuda.graphs += 1
        return Graph(tuple(self._work))

    def close(self) -> None:
        self._cuda.begin_capture(None)
        if self._stream.is_capturing:
            self._stream.begin_capture()
            self._stream.end_capture()


class Graph:
    def __init__(self, work: tuple[Run, ...]) -> None:
        self._work = work

    def launch(self, stream: Stream) -> None:
        for run in self._work:
            stream.put(run)


def core_names(cuda: Cuda) -> dict[str, Any]:
    """What `cuda.core` offers on this machine."""
    return {
        "Buffer": SimpleNamespace(from_handle=partial(HostBuffer, cuda)),
        "Device": partial(Device, cuda),
        "EventOptions": EventOptions,
        "LegacyPinnedMemoryResource": partial(PinnedMemory, cuda),
    }
