"""TensorRT and CUDA as far as the backend sees them, on plain memory: for machines without either.

An "engine" is the tiny model. What it is given and gives lies at the addresses that the backend sets, so an address
that is wrong, a copy that is left out or a stream that is not waited for shows as wrong answers.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cervix_engine.bundle import Bundle, seal
from cervix_engine.engine_file import fingerprint_path
from cervix_engine.files import sha256_bytes, write_json
from cervix_engine.gpu import Gpu
from engine.engine_marks import A10, ENGINE, mark_of
from engine.run.support import CLASS_NAMES, make_bundle, reference_probabilities, tiny_onnx

VERSION = "10.9.0"
DATA = b"stands for an engine of the tiny model"
INPUT, OUTPUT = "tiles", "probabilities"


def make_engine_bundle(root: Path, **changes: Any) -> Bundle:
    """The tiny bundle with an FP16 graph and an engine for an A10; `changes` are of its fingerprint."""
    make_bundle(root)
    graph = tiny_onnx(half=True)
    (root / "model.fp16.onnx").write_bytes(graph)
    (root / "engines").mkdir()
    (root / ENGINE).write_bytes(DATA)
    mark = replace(mark_of(sha256_bytes(DATA), sha256_bytes(graph)), opt_batch=8, max_batch=32)
    write_json(root / fingerprint_path(ENGINE), replace(mark, **changes).to_json())
    return seal(root)


class Machine:
    """A machine with these GPUs and TensorRT; `loaded` has the bytes of every engine that TensorRT was given."""

    def __init__(
        self, gpus: tuple[Gpu, ...] = (A10,), *, broken: bool = False, classes: int = len(CLASS_NAMES)
    ) -> None:
        self.gpus, self.broken, self.classes = gpus, broken, classes
        self.loaded: list[bytes] = []
        self._memory: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self._pending: list[Callable[[], None]] = []
        self._current: set[int] = set()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make it the machine of this test."""
        trt = ModuleType("tensorrt")
        vars(trt).update(__version__=VERSION, uint8="uint8", float32="float32", Runtime=self._runtime, Logger=_Logger)
        core = ModuleType("cuda.core")
        vars(core).update(
            Device=self._device, LegacyPinnedMemoryResource=lambda: SimpleNamespace(allocate=self._buffer)
        )
        for name, module in {"tensorrt": trt, "cuda": ModuleType("cuda"), "cuda.core": core}.items():
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        for place in ("cervix_engine.backends.tensorrt.find_gpus", "cervix_engine.gpu.find_gpus"):
            monkeypatch.setattr(place, lambda: self.gpus)

    # ---- cuda-core

    def _device(self, _ordinal: int) -> Any:
        stream = SimpleNamespace(handle=7, sync=self._sync)
        return SimpleNamespace(
            set_current=lambda: self._current.add(threading.get_ident()),
            create_stream=lambda: stream,
            allocate=lambda size, *, stream: self._buffer(size),
        )

    def _buffer(self, size: int) -> Any:
        memory = np.full(size, 0xA5, np.uint8)
        self._memory[memory.ctypes.data] = memory

        def copy_from(source: Any, *, stream: Any) -> None:
            assert threading.get_ident() in self._current, "this thread has no CUDA context"
            self._pending.append(lambda: np.copyto(memory, source.memory))

        return _Buffer(memory, copy_from)

    def _sync(self) -> None:
        for work in self._pending:
            work()
        self._pending.clear()

    # ---- TensorRT

    def _runtime(self, _logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._load)

    def _load(self, data: bytes) -> Any:
        self.loaded.append(data)
        if self.broken:
            return None
        shapes = {INPUT: (-1, 32, 32, 3), OUTPUT: (-1, self.classes)}
        return SimpleNamespace(
            get_tensor_name=lambda place: (INPUT, OUTPUT)[place],
            get_tensor_shape=shapes.__getitem__,
            get_tensor_dtype={INPUT: "uint8", OUTPUT: "float32"}.__getitem__,
            create_execution_context=lambda: _Context(self._memory, self._pending),
        )


class _Buffer:
    def __init__(self, memory: Any, copy_from: Callable[..., None]) -> None:
        self.memory, self.copy_from = memory, copy_from
        self.handle = memory.ctypes.data


class _Logger:
    ERROR = 1

    def __init__(self, _severity: int) -> None: ...


class _Context:
    def __init__(self, memory: dict[int, Any], pending: list[Callable[[], None]]) -> None:
        self._memory, self._pending = memory, pending
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert name == INPUT
        self._shape = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        self._pending.append(self._compute)
        return True

    def _compute(self) -> None:
        pixels = self._memory[self._addresses[INPUT]].reshape(self._shape)
        answers = reference_probabilities(pixels)
        np.copyto(self._memory[self._addresses[OUTPUT]], answers.view(np.uint8).reshape(-1))
