"""The simulation of a GPU has the names of the real libraries, and is as unforgiving as the real thing.

A simulation could agree with the backends on names that the libraries do not have, or give right answers to code that
forgot to wait.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cervix_engine.backends import runtime_version
from engine.backends import simulated_core, simulated_cuda, simulated_gpu
from engine.backends.simulated_core import Buffer, Device, EventOptions, HostBuffer, PinnedMemory
from engine.backends.simulated_cuda import FREED, NEVER_WRITTEN, Cuda, CudaError

# Parts of the simulation that `cuda.core` does not have, but the simulated runtimes need.
BEYOND = {"memory", "ordinal", "is_capturing", "put", "append", "invalidate", "begin_capture", "end_capture", "mark"}
KINDS = ("Device", "Stream", "Event", "EventOptions", "Buffer", "GraphBuilder", "Graph")


def parameters(function: Any) -> list[tuple[str, Any, bool]]:
    found = inspect.signature(function).parameters.values()
    return [(item.name, item.kind, item.default is inspect.Parameter.empty) for item in found]


# ---- the names


@pytest.mark.parametrize("kind", [*KINDS, "LegacyPinnedMemoryResource"])
def test_the_names_are_those_of_the_real_cuda_core(kind: str) -> None:
    core = pytest.importorskip("cuda.core")
    graph = pytest.importorskip("cuda.core.graph")
    real = getattr(graph if kind.startswith("Graph") else core, kind)
    simulated = getattr(simulated_core, {"LegacyPinnedMemoryResource": "PinnedMemory"}.get(kind, kind))
    if kind == "Buffer":
        given = [item for item in parameters(simulated_core.HostBuffer) if item[0] != "cuda"]
        assert [item[0] for item in given] == [item[0] for item in parameters(real.from_handle)]
    for name in {name for name in vars(simulated) if not name.startswith("_")} - BEYOND:
        assert hasattr(real, name), f"{kind} has no {name}"
        if callable(getattr(simulated, name)):
            assert parameters(getattr(simulated, name)) == parameters(getattr(real, name)), f"{kind}.{name}"
        else:
            assert not callable(getattr(real, name)), f"{kind}.{name}"


def test_the_options_are_those_of_the_real_cuda_core() -> None:
    core, graph = pytest.importorskip("cuda.core"), pytest.importorskip("cuda.core.graph")
    assert core.EventOptions(blocking_sync=True).blocking_sync is True
    modes = graph.GraphBuilder.begin_building.__doc__
    assert [mode for mode in simulated_cuda.CAPTURE_MODES if f"`{mode}`" not in modes] == []
    assert "device_id" in inspect.signature(core.Device.__new__).parameters


def test_the_names_are_those_of_the_real_driver() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    for name, simulated in Cuda(1).driver_names().items():
        assert hasattr(real, name)
        if name.startswith("cu"):
            assert list(inspect.signature(simulated).parameters) == re.findall(
                r"(\w+)[,)]", real.__dict__[name].__doc__.partition("\n")[0]
            )
    assert simulated_cuda.PORTABLE == real.CU_MEMHOSTREGISTER_PORTABLE
    for result in simulated_cuda.Result:
        assert result.value == getattr(real.CUresult, result.name).value


def test_memory_of_others_is_copied_from_only_while_it_is_registered() -> None:
    bench, memory = Bench(), np.ones(1, np.uint8)
    bench.cuda._register(memory.ctypes.data, 1, simulated_cuda.PORTABLE)
    held = HostBuffer(bench.cuda, memory.ctypes.data, 1)
    bench.cuda._unregister(memory.ctypes.data)
    bench.given.copy_from(held, stream=bench.upload)
    with pytest.raises(AssertionError, match="or freed"):
        bench.upload.sync()
    with pytest.raises(AssertionError, match="ordinary memory"):
        HostBuffer(bench.cuda, memory.ctypes.data, 1)


def test_the_names_are_those_of_the_real_runtime() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    names = {
        "Runtime": ["deserialize_cuda_engine"],
        "ICudaEngine": ["get_tensor_name", "get_tensor_shape", "get_tensor_dtype", "create_execution_context"],
        "IExecutionContext": ["set_input_shape", "set_tensor_address", "execute_async_v3"],
        "ILogger": ["INTERNAL_ERROR", "ERROR", "WARNING"],
    }
    for kind, members in names.items():
        assert [name for name in members if not hasattr(getattr(trt, kind), name)] == []
    assert trt.uint8 != trt.float32
    assert runtime_version("tensorrt-rtx") == trt.__version__


@pytest.mark.parametrize("name", ["bind_input", "bind_output"])
def test_the_names_are_those_of_the_real_binding(name: str) -> None:
    simulated, real = (getattr(kind, name) for kind in (simulated_gpu._Binding, onnxruntime.IOBinding))
    assert [item[0] for item in parameters(simulated)] == [item[0] for item in parameters(real)]


# ---- how unforgiving it is


class Bench:
    """A device with memory for two numbers: `up` is copied up, doubled, and copied down to `down`."""

    def __init__(self, **options: Any) -> None:
        self.cuda = Cuda(2, **options)
        self.device = Device(self.cuda, 0)
        self.device.set_current()
        self.upload, self.compute, self.download = (self.device.create_stream() for _ in range(3))
        pinned = PinnedMemory(self.cuda)
        self.up, self.down = pinned.allocate(1), pinned.allocate(1)
        self.given, self.answer = (self.device.allocate(1, stream=self.upload) for _ in range(2))
        self.compute.wait(self.upload)
        self.events = [self.device.create_event(EventOptions(blocking_sync=True)) for _ in range(3)]

    def double(self) -> None:
        self.compute.put(lambda: np.copyto(self.answer.memory, 2 * self.given.memory))

    def begin(self, number: int, *, without: str = "") -> None:
        self.up.memory[0] = number
        self.given.copy_from(self.up, stream=self.upload)
        self.upload.record(self.events[0])
        if without != "upload":
            self.compute.wait(self.events[0])
        self.double()
        self.compute.record(self.events[1])
        if without != "compute":
            self.download.wait(self.events[1])
        self.down.copy_from(self.answer, stream=self.download)
        if without != "download":
            self.download.record(self.events[2])

    def fetch(self) -> int:
        self.events[2].sync()
        return int(self.down.memory[0])


def test_work_is_done_when_somebody_waits_for_it_and_not_before() -> None:
    bench = Bench()
    bench.begin(3)
    assert bench.down.memory[0] == NEVER_WRITTEN
    assert bench.fetch() == 6


@pytest.mark.parametrize("without", ["upload", "compute", "download"])
def test_a_missing_event_is_a_wrong_answer(without: str) -> None:
    bench = Bench()
    bench.begin(3, without=without)
    try:
        assert bench.fetch() != 6
    except AssertionError as error:
        assert "before it is allocated" in str(error)  # noqa: PT017 - one or the other


def test_what_is_copied_up_is_what_lies_there_when_it_is_copied() -> None:
    bench = Bench()
    bench.begin(3)
    bench.up.memory[0] = 4  # a slot that is used again too early
    assert bench.fetch() == 8


def test_hurried_work_overwrites_what_is_still_needed() -> None:
    """That no order of streams hides it: a second batch is copied up before the first one is computed."""
    seen = set()
    for seed in range(20):
        bench = Bench(hurry=0.5, seed=seed)
        bench.begin(3)
        bench.up.memory[0] = 5
        bench.given.copy_from(bench.up, stream=bench.upload)
        seen.add(bench.fetch())
    assert seen == {6, 10}


def test_in_a_hurry_everything_is_done_at_once() -> None:
    bench = Bench(hurry=1.0)
    bench.begin(3)
    assert bench.down.memory[0] == 6


def test_memory_holds_garbage_before_and_after() -> None:
    bench = Bench(hurry=1.0)
    memory = bench.device.allocate(4, stream=bench.upload)
    kept = memory.memory
    assert set(kept) == {NEVER_WRITTEN}
    used = bench.cuda.used_bytes[0]
    del memory
    assert set(kept) == {FREED}
    assert bench.cuda.used_bytes == [used - 4, 0]


def test_memory_is_used_only_after_it_was_allocated() -> None:
    bench = Bench()
    memory = bench.device.allocate(1, stream=bench.upload)
    bench.compute.wait(bench.upload)
    memory.copy_from(bench.up, stream=bench.compute)
    bench.compute.sync()
    early = bench.device.allocate(1, stream=bench.upload)
    early.copy_from(bench.up, stream=bench.compute)
    for _ in range(2):  # a device that failed goes on failing
        with pytest.raises(AssertionError, match="before it is allocated"):
            bench.compute.sync()


def test_memory_ends() -> None:
    bench = Bench(memory_bytes={0: 10})
    held = bench.device.allocate(8, stream=bench.upload)
    with pytest.raises(CudaError, match="OUT_OF_MEMORY"):
        bench.device.allocate(1, stream=bench.upload)
    del held
    assert isinstance(bench.device.allocate(1, stream=bench.upload), Buffer)


def test_another_device_must_be_made_current() -> None:
    bench = Bench()
    Device(bench.cuda, 1).set_current()
    with pytest.raises(AssertionError, match="device 1 is current"):
        bench.begin(1)


def test_a_graph_does_what_was_captured_whenever_it_is_launched() -> None:
    bench = Bench()
    builder = bench.compute.create_graph_builder().begin_building("thread_local")
    bench.double()
    graph = builder.end_building().complete()
    bench.up.memory[0] = 3
    bench.given.copy_from(bench.up, stream=bench.upload)
    bench.compute.wait(bench.upload)
    bench.compute.sync()
    assert bench.answer.memory[0] != 6
    graph.launch(bench.compute)
    bench.compute.sync()
    assert bench.answer.memory[0] == 6


def test_waiting_and_allocating_break_a_capture() -> None:
    for break_it in (Bench.fetch, lambda bench: bench.device.allocate(1, stream=bench.upload)):
        bench = Bench()
        builder = bench.compute.create_graph_builder().begin_building("thread_local")
        with pytest.raises(CudaError, match="not permitted"):
            break_it(bench)
        with pytest.raises(CudaError, match="INVALIDATED"):
            builder.end_building()


def test_a_builder_takes_all_work_until_it_is_closed() -> None:
    bench = Bench()
    builder = bench.compute.create_graph_builder().begin_building()
    bench.double()
    assert bench.compute.is_capturing
    builder.close()
    bench.compute.sync()
    assert bench.answer.memory[0] == NEVER_WRITTEN
    bench.double()
    bench.compute.sync()
    assert bench.answer.memory[0] != NEVER_WRITTEN
