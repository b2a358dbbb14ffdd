"""Batches under way on one NVIDIA GPU: the next one is copied up while the one before it computes.

    upload     k ─┐  k+1 ─┐
    compute       └─ k ───┴─┐ k+1 ─┐      three streams; each waits for the one before by an event,
    download                └ k    └ k+1  and the host only for a batch whose answers it fetches

A *lane* is what one batch needs on the device. How a batch is computed is the runtime's affair: it is given a lane once
and makes the call that puts the work on the compute stream.

Source: CUDA C++ Programming Guide, "Asynchronous Concurrent Execution"; cuda-core's `Stream`, `Event`, `GraphBuilder`.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.backends.base import Pending
from cervix_engine.backends.cuda.pinned import page_locked, pinned_buffer
from cervix_engine.errors import DeviceMemoryError
from cervix_engine.values import Pixels, Probabilities

log = logging.getLogger(__name__)

# One computes while the next one is copied: more would wait for the same kernels.
IN_FLIGHT = 2
# Up to so many tiles, starting a network's hundred kernels one by one takes about as long as they do.
GRAPHED_TILES = 8

# As CUDA, TensorRT and ONNX Runtime say that the device's memory is full.
_FULL = ("out of memory", "out_of_memory", "failed to allocate memory", "outofmemory", "alloc_failed")

Compute = Callable[[], None]


@dataclass(slots=True)
class Lane:
    """Room for one batch on the device.

    Attributes:
        shapes: of the batch's pixels and of its answers.
        pixels, answers: device buffers, `uint8` and `float32`.
        staged: pinned buffer for pixels that do not lie in pinned memory, and the same as an array.
        fetched: pinned buffer of the answers, and the same as an array.
        uploaded, computed, downloaded: events.
        compute: puts the work on the compute stream.
        source: the pinned buffer that its last batch is copied from, which must live until that is done.
        batch: what is under way in it.
    """

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    pixels: Any
    answers: Any
    staged: tuple[Any, Pixels]
    fetched: tuple[Any, npt.NDArray[np.float32]]
    uploaded: Any
    computed: Any
    downloaded: Any
    compute: Compute = lambda: None
    source: Any = None
    batch: _Batch | None = None

    @property
    def addresses(self) -> tuple[int, int]:
        """Of the pixels and the answers on the device."""
        return int(self.pixels.handle), int(self.answers.handle)


class _Batch:
    """The answers of a batch that was begun in a lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane: Lane | None = lane
        self._answers: Probabilities = lane.fetched[1]

    def fetch(self) -> Probabilities:
        """Wait for them, once; they are then out of the lane's memory, and another batch may have the lane."""
        if self._lane:
            self._lane.downloaded.sync()
            self._answers = self._answers.copy()
            self._lane.batch = None
            self._lane = None
        return self._answers


class GpuStreams:
    """A GPU and its three streams.

    Args:
        ordinal: the GPU's index in the driver's order.
    """

    def __init__(self, ordinal: int) -> None:
        from cuda.core import Device

        self.device = Device(ordinal)
        self.device.set_current()
        self.upload, self.compute, self.download = (self.device.create_stream() for _ in range(3))

    def captured(self, compute: Compute) -> Compute:
        """The same work as one CUDA graph, which is started by one call; `compute` where it cannot be captured."""
        compute()  # what a runtime settles in its first call must not become part of the graph
        self.compute.sync()
        builder = self.compute.create_graph_builder()
        try:
            builder.begin_building("thread_local")
            compute()
            graph = builder.end_building().complete()
        except Exception as error:  # noqa: BLE001 - as above; it only costs speed
            builder.close()
            # As text: a record that is kept would keep the error's frames, and with them the batch.
            log.warning("small batches run without a CUDA graph: %s", str(error))
            return compute
        return lambda: graph.launch(self.compute)

    def wait(self) -> None:
        """Wait for all that is under way."""
        with suppress(Exception):  # after a failure, the device may refuse this too; that failure is the news
            self.device.set_current()
            for stream in (self.upload, self.compute, self.download):
                stream.sync()


class GpuLanes:
    """The lanes of one GPU, all for batches of one size.

    Args:
        streams: the GPU's.
        classes: how many answers a tile has.
        prepare: makes the call that computes a lane's batch on the stream `compute`.
    """

    def __init__(self, streams: GpuStreams, *, classes: int, prepare: Callable[[Lane], Compute]) -> None:
        from cuda.core import LegacyPinnedMemoryResource

        self._streams = streams
        self._pinned = LegacyPinnedMemoryResource()
        self._classes = classes
        self._prepare = prepare
        self._lanes: list[Lane] = []
        self._next = 0
        # A thread that is abandoned may still be about to begin a batch when the device is freed.
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def pinned(self, pixels: Pixels) -> Iterator[None]:
        """While the block runs, the device copies batches that lie in `pixels` by itself."""
        self._streams.device.set_current()
        # Whoever leaves early may leave while the device still copies.
        with page_locked(pixels, wait=self._streams.wait):
            yield

    def begin(self, pixels: Pixels) -> Pending:
        """Begin a batch, `uint8 (N, height, width, 3)`; where all lanes are taken, wait for the one begun first.

        Raises:
            DeviceMemoryError: the device has no room for a batch of this size.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("a batch was begun after the model was freed")
            return self._begin(pixels)

    def _begin(self, pixels: Pixels) -> Pending:
        streams = self._streams
        # For this thread, which need not be the one that opened the device; of several GPUs each has its turn.
        streams.device.set_current()
        try:
            lane = self._free_lane(pixels.shape)
            lane.source = self._source(pixels, lane)
            lane.pixels.copy_from(lane.source, stream=streams.upload)
            streams.compute.wait(streams.upload.record(lane.uploaded))
            lane.compute()
            streams.download.wait(streams.compute.record(lane.computed))
            lane.fetched[0].copy_from(lane.answers, stream=streams.download)
            streams.download.record(lane.downloaded)
        except Exception as error:  # CUDA and the runtimes raise types of their own
            streams.wait()  # the batch may be on its way up, and its memory about to go
            if any(sign in str(error).lower() for sign in _FULL):
                self._lanes = []
                raise DeviceMemoryError(f"the device has no memory for a batch of {len(pixels)}: {error}") from error
            raise
        lane.batch = batch = _Batch(lane)
        return batch.fetch

    def _free_lane(self, shape: tuple[int, ...]) -> Lane:
        if not self._lanes or self._lanes[0].shapes[0] != shape:
            self._fit(shape)
        lane = self._lanes[self._next]
        self._next = (self._next + 1) % IN_FLIGHT
        if lane.batch:
            lane.batch.fetch()
        return lane

    def close(self) -> None:
        """Wait for what is under way, which nothing may be taken from, and free the device."""
        with self._lock:
            self._closed = True
            self._streams.wait()
            # Circles are broken here: the device is to be free now, and not when Python next looks for them.
            for lane in self._lanes:
                lane.batch = None
            self._lanes = []
            del self._prepare

    def _fit(self, shape: tuple[int, ...]) -> None:
        """Make room for batches of another shape. A run has one."""
        self._fetch_all()
        self._lanes, self._next = [], 0
        lanes = [self._lane((shape, (shape[0], self._classes))) for _ in range(IN_FLIGHT)]
        self._streams.compute.wait(self._streams.upload)  # on which the memory was allocated
        for lane in lanes:
            lane.compute = self._prepare(lane)
        self._lanes = lanes

    def _fetch_all(self) -> None:
        for lane in self._lanes:
            if lane.batch:
                lane.batch.fetch()

    def _lane(self, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Lane:
        from cuda.core import EventOptions

        pixels, answers = shapes
        device, upload = self._streams.device, self._streams.upload
        # Who waits for the answers sleeps: a thread that spun would take a core from decoding.
        uploaded, computed, downloaded = (device.create_event(EventOptions(blocking_sync=True)) for _ in range(3))
        return Lane(
            shapes,
            device.allocate(math.prod(pixels), stream=upload),
            device.allocate(math.prod(answers) * np.dtype(np.float32).itemsize, stream=upload),
            self._pinned_array(pixels, np.uint8),
            self._pinned_array(answers, np.float32),
            uploaded,
            computed,
            downloaded,
        )

    def _source(self, pixels: Pixels, lane: Lane) -> Any:
        """The pinned buffer that holds the batch: its own, else a copy."""
        own = pinned_buffer(pixels)
        if own is not None:
            return own
        buffer, staged = lane.staged
        np.copyto(staged, pixels)
        return buffer

    def _pinned_array(self, shape: tuple[int, ...], kind: type[np.generic]) -> tuple[Any, Any]:
        """A pinned buffer and the array that it is; whoever has the array keeps the memory."""
        size = math.prod(shape) * np.dtype(kind).itemsize
        buffer = self._pinned.allocate(size)
        memory: Any = (ctypes.c_uint8 * size).from_address(int(buffer.handle))
        memory.buffer = buffer
        return buffer, np.ctypeslib.as_array(memory).view(kind).reshape(shape)
