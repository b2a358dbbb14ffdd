"""A machine with NVIDIA GPUs, TensorRT and ONNX Runtime's CUDA provider, for machines without: see `simulated_cuda.py`.

An "engine" is the tiny model, computed by NumPy. ONNX Runtime is the real one with its CPU provider, run where the
compute stream comes to it, with the real binding of inputs and outputs to the addresses that the backend bound.

All but the driver is handed in as modules: what a backend imports is what the machine has.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cervix_engine.backends import Backend, Combination, open_backend, runtime_version
from cervix_engine.backends.device import Device
from cervix_engine.backends.survey import survey
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.certificate import Certificate, Parity
from cervix_engine.bundle.engine_file import fingerprint_path
from cervix_engine.cli.batch import main
from cervix_engine.files import sha256_bytes, write_json
from cervix_engine.gpu import Gpu
from engine.backends.simulated_core import Stream, core_names
from engine.backends.simulated_cuda import Cuda
from engine.bundle.engine_marks import A10, ENGINE, mark_of
from engine.run.support import CLASS_NAMES, CONTRACT, make_bundle, reference_probabilities, tiny_onnx

VERSION = "10.9.0"
DATA = b"stands for an engine of the tiny model"
INPUT, OUTPUT = "tiles", "probabilities"
PROVIDER = "CUDAExecutionProvider"
# What a machine with TensorRT alone does not have.
CPU_RUNTIMES = ("onnxruntime", "onnxruntime_ep_openvino", "openvino")

# Both ways to run the tiny bundle on a GPU.
ON_GPU = {
    "tensorrt": Combination("tensorrt", "fp16", ENGINE),
    "onnxruntime-cuda": Combination("onnxruntime-cuda", "fp32"),
}
MAX_BATCH = 32


def a10s(count: int) -> tuple[Gpu, ...]:
    """So many GPUs of one kind."""
    return tuple(replace(A10, ordinal=ordinal) for ordinal in range(count))


def lane_bytes(tiles: int) -> int:
    """The device memory of one lane for batches of so many tiles: `uint8` pixels and `float32` answers."""
    height, width = CONTRACT.input_size
    return tiles * (height * width * 3 + len(CLASS_NAMES) * 4)


def make_engine_bundle(root: Path, **changes: Any) -> Bundle:
    """The tiny bundle with an FP16 graph and an engine for an A10; `changes` are of its fingerprint."""
    make_bundle(root)
    graph = tiny_onnx(half=True)
    (root / "model.fp16.onnx").write_bytes(graph)
    (root / "engines").mkdir()
    (root / ENGINE).write_bytes(DATA)
    mark = replace(mark_of(sha256_bytes(DATA), sha256_bytes(graph)), opt_batch=8, max_batch=MAX_BATCH)
    write_json(root / fingerprint_path(ENGINE), replace(mark, **changes).to_json())
    return seal(root)


def certified(
    bundle: Bundle, combination: Combination, *, tiles_per_sec: float = 20_000.0
) -> tuple[Bundle, Certificate]:
    """The bundle with a certificate that says how fast it is on an A10, and that certificate."""
    certificate = Certificate(
        file=combination.artefact,
        file_sha256=bundle.files[combination.artefact],
        backend=combination.backend,
        backend_version=VERSION if combination.engine else runtime_version(combination.backend) or "",
        precision=combination.precision,
        arithmetic=combination.precision,
        device_class=A10.device_class,
        reference="numpy",
        parity=Parity(tiles=24, max_absdiff=0.0, p99_absdiff=0.0, top1_agreement=1.0, flips=()),
        tiles_per_sec=tiles_per_sec,
        passed=True,
    )
    (bundle.root / "certificates").mkdir()
    write_json(bundle.root / certificate.path, certificate.to_json())
    return seal(bundle.root), certificate


def ways_here(bundle: Bundle) -> set[Combination]:
    """What this machine runs of a bundle."""
    return {way.combination for way in survey(bundle).runnable}


def pixels_of(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, *CONTRACT.input_size, 3), np.uint8)


@contextmanager
def opened(machine: Machine, bundle: Bundle, runtime: str, *, device: str = "cuda") -> Iterator[Backend]:
    """The bundle's model, loaded on a simulated machine."""
    with pytest.MonkeyPatch.context() as patch:
        machine.install(patch)
        with open_backend(bundle, combination=ON_GPU[runtime], device=Device.parse(device)) as backend:
            yield backend
    assert machine.cuda.broken is None, machine.cuda.broken


class Machine:
    """A machine with these GPUs and TensorRT.

    Args:
        gpus: what the driver offers.
        broken: TensorRT refuses every engine.
        classes: of the engine.
        provider: whether the installed ONNX Runtime has a CUDA provider.
        libraries: whether the provider's libraries are there.
        falls_back: whether ONNX Runtime runs a session on the CPU although it was told not to.
        alone: whether TensorRT is the only runtime that is installed.
        context: whether an engine gets a context, which needs memory.
        faulty: a GPU on which engines answer wrongly.
        cuda: see `Cuda`.

    Attributes:
        loaded: the bytes of every engine that TensorRT was given.
        computed: the GPU and the SHA-256 of the pixels of every batch, in the order in which they were computed.
        threads: names of the threads that put them on a stream.
    """

    def __init__(
        self,
        gpus: tuple[Gpu, ...] = (A10,),
        *,
        broken: bool = False,
        classes: int = len(CLASS_NAMES),
        provider: bool = True,
        libraries: bool = True,
        falls_back: bool = False,
        alone: bool = False,
        context: bool = True,
        faulty: int | None = None,
        **cuda: Any,
    ) -> None:
        self.gpus, self.broken, self.classes = gpus, broken, classes
        self.cuda = Cuda(len(gpus), **cuda)
        self.loaded: list[bytes] = []
        self.computed: list[tuple[int, str]] = []
        self.threads: set[str] = set()
        self._provider, self._libraries, self._alone = provider, libraries, alone
        self._context, self.faulty, self.falls_back = context, faulty, falls_back

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make it the machine of this test."""
        trt = ModuleType("tensorrt")
        vars(trt).update(__version__=VERSION, uint8="uint8", float32="float32", Runtime=self._runtime, ILogger=_Logger)
        core = ModuleType("cuda.core")
        vars(core).update(core_names(self.cuda))
        bindings = ModuleType("cuda.bindings")
        vars(bindings).update(driver=SimpleNamespace(**self.cuda.driver_names()))
        for module in (trt, ModuleType("cuda"), core, bindings):
            module.__spec__ = ModuleSpec(module.__name__, None)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        if self._alone:
            for name in CPU_RUNTIMES:
                monkeypatch.setitem(sys.modules, name, None)
        else:
            monkeypatch.setitem(sys.modules, "onnxruntime", self._onnxruntime())
        monkeypatch.setattr("cervix_engine.gpu.find_gpus", lambda: self.gpus)

    def gpus_of(self, batches: Mapping[int, Any]) -> dict[int, list[int]]:
        """On which GPUs each of these numbered batches was computed."""
        digests = {number: digest_of(pixels) for number, pixels in batches.items()}
        return {number: [gpu for gpu, seen in self.computed if seen == digest] for number, digest in digests.items()}

    def put(self, stream: Stream, pixels: Any, answers: Any, compute: Callable[[], None]) -> None:
        """Put a batch's work on a stream, as a runtime does; both arrays lie in device memory."""
        self.cuda.attempt("compute")
        self.threads.add(threading.current_thread().name)

        def run() -> None:
            self.cuda.require_usable(pixels, answers)
            self.computed.append((stream.ordinal, digest_of(pixels)))
            compute()

        stream.put(run)

    # ---- TensorRT

    def _runtime(self, messages: Any) -> Any:
        if self.broken:
            messages.log(_Logger.ERROR, "a reason of the runtime's own")
        return SimpleNamespace(deserialize_cuda_engine=self._load)

    def _load(self, data: bytes) -> Any:
        self.loaded.append(data)
        self.cuda.attempt("load")
        ordinal = self.cuda.current
        assert ordinal is not None, "an engine is loaded where no device is current"
        if self.broken:
            return None
        shapes = {INPUT: (-1, 32, 32, 3), OUTPUT: (-1, self.classes)}
        return SimpleNamespace(
            get_tensor_name=lambda place: (INPUT, OUTPUT)[place],
            get_tensor_shape=shapes.__getitem__,
            get_tensor_dtype={INPUT: "uint8", OUTPUT: "float32"}.__getitem__,
            create_execution_context=lambda: _Context(self, ordinal) if self._context else None,
        )

    # ---- ONNX Runtime

    def _onnxruntime(self) -> ModuleType:
        """The real one, with a CUDA provider."""
        real, module = real_onnxruntime(), ModuleType("onnxruntime")
        providers = [*([PROVIDER] if self._provider else []), *real.get_available_providers()]
        vars(module).update(vars(real))
        vars(module).update(
            __file__=str(provider_libraries() / "__init__.py" if self._libraries else "/nonexistent/__init__.py"),
            get_available_providers=lambda: providers,
            preload_dlls=lambda: None,
            InferenceSession=self._session,
        )
        return module

    def _session(self, model: bytes, options: Any = None, **named: Any) -> Any:
        asked = named.get("providers", ())
        on_gpu = any(PROVIDER in (item, item[0]) for item in asked)
        assert not on_gpu or named["enable_fallback"] == 0, "it would fall back to the CPU by itself"
        return (
            _CudaSession(self, model, options, asked)
            if on_gpu
            else real_onnxruntime().InferenceSession(model, options, **named)
        )


@cache
def real_onnxruntime() -> ModuleType:
    return importlib.import_module("onnxruntime")


@cache
def provider_libraries() -> Path:
    """A folder like ONNX Runtime's, in which both libraries of a provider can be loaded."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    library = Path(str(real_onnxruntime().__file__)).parent / "capi" / "libonnxruntime_providers_shared.so"
    (folder / "capi").mkdir()
    for name in ("shared", "cuda"):
        (folder / "capi" / f"libonnxruntime_providers_{name}.so").symlink_to(library)
    return folder


def digest_of(pixels: Any) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


class _Logger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)


class _Context:
    """Shape and addresses are those of the moment at which work is put."""

    def __init__(self, machine: Machine, ordinal: int) -> None:
        self._machine, self._ordinal = machine, ordinal
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == INPUT
        self._shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        stream = self._machine.cuda.stream(handle)
        assert stream.ordinal == self._ordinal, "an engine runs on the GPU on which it was loaded"
        if stream.is_capturing and self._machine.cuda.capture == "refused":
            return False
        given, answered = (self._memory(name) for name in (INPUT, OUTPUT))
        pixels = given.reshape(self._shape)

        def compute() -> None:
            answers = reference_probabilities(pixels)
            if self._machine.faulty == self._ordinal:
                answers = np.roll(answers, 1, axis=1)
            np.copyto(answered, answers.view(np.uint8).reshape(-1))

        self._machine.put(stream, pixels, answered, compute)
        return True

    def _memory(self, name: str) -> Any:
        return self._machine.cuda.memory(self._addresses[name], ordinal=self._ordinal)


class _CudaSession:
    """A real session that says that it runs on CUDA, and asserts that it was asked for as it must be."""

    def __init__(self, machine: Machine, model: bytes, options: Any, providers: list[Any]) -> None:
        ((_, given),) = providers  # and no other one to fall back on
        assert given.keys() == {"device_id", "user_compute_stream", "cudnn_conv_algo_search", "use_tf32"}
        assert all(isinstance(value, str) for value in given.values())
        assert (given["cudnn_conv_algo_search"], given["use_tf32"]) == ("HEURISTIC", "0")
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        machine.cuda.attempt("load")
        self._machine = machine
        self._stream = machine.cuda.stream(int(given["user_compute_stream"]))
        assert self._stream.ordinal == int(given["device_id"])
        self._session = real_onnxruntime().InferenceSession(model, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"] if self._machine.falls_back else [PROVIDER, "CPUExecutionProvider"]

    def io_binding(self) -> _Binding:
        return _Binding(self._machine.cuda, self._session.io_binding(), self._stream.ordinal)

    def run_with_iobinding(self, binding: _Binding, run_options: Any) -> None:
        assert run_options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        compute = self._session.run_with_iobinding
        self._machine.put(self._stream, binding.pixels, binding.answers, lambda: compute(binding.real))


class _Binding:
    """The real binding, of host memory that stands for the device's."""

    def __init__(self, cuda: Cuda, real: Any, ordinal: int) -> None:
        self.real: Any = real
        self.pixels: Any = None
        self.answers: Any = None
        self._cuda, self._ordinal = cuda, ordinal

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: list[int], buffer_ptr: int
    ) -> None:
        memory = self._checked(device_type, device_id, element_type, shape, buffer_ptr)
        self.pixels = memory.view(element_type).reshape(shape)
        self.real.bind_input(name, "cpu", 0, element_type, shape, buffer_ptr)

    def bind_output(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: list[int], buffer_ptr: int
    ) -> None:
        self.answers = self._checked(device_type, device_id, element_type, shape, buffer_ptr)
        self.real.bind_output(name, "cpu", 0, element_type, shape, buffer_ptr)

    def _checked(self, device_type: str, device_id: int, kind: Any, shape: list[int], address: int) -> Any:
        assert (device_type, device_id) == ("cuda", self._ordinal)
        memory = self._cuda.memory(address, ordinal=self._ordinal)
        assert memory.size == np.prod(shape) * np.dtype(kind).itemsize
        return memory


def batch(tiles: Path, bundle: Bundle, out: Path, *options: str) -> Result:
    """Run `cervix-batch`."""
    return CliRunner().invoke(main, [str(tiles), "--out", str(out), "--model", str(bundle.root), *options])
