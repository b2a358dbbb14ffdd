"""ONNX graph -> TensorRT engine, by TensorRT 10, 11 or TensorRT-RTX: one code, since the names are the same.

The last builds for chosen compute capabilities on a machine without any GPU.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cervix_engine.backends.cuda.messages import collected_messages
from cervix_engine.backends.tensorrt import MODULES, TensorRtRtx
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.engine_file import EngineFingerprint, HardwareCompat, read_fingerprint
from cervix_engine.contract import ModelContract
from cervix_engine.errors import BackendUnavailableError, ContractError, EngineBuildError, UsageError
from cervix_engine.files import sha256_bytes
from cervix_engine.gpu import Gpu, cuda_version, find_gpus, memory_gib
from cervix_engine.values import Precision
from cervix_export.engines.plan import EnginePlan
from cervix_export.engines.proof import Shares, prove_network
from cervix_export.engines.timing_cache import keep_timing_cache, slug, timing_cache_file, use_timing_cache

logger = logging.getLogger(__name__)

_COMPAT: dict[HardwareCompat, str] = {
    "none": "NONE",
    "same-cc": "SAME_COMPUTE_CAPABILITY",
    "ampere+": "AMPERE_PLUS",
}


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine's bytes, what they were built for, and what the parsed network computes in."""

    data: bytes
    fingerprint: EngineFingerprint
    shares: Shares

    @property
    def path(self) -> str:
        """Where it lies in the bundle."""
        mark = self.fingerprint
        ahead = "-".join(f"sm{capability.replace('.', '')}" for capability in mark.compute_capabilities)
        gpu = slug(mark.gpu) if mark.gpu else ahead
        return f"engines/{gpu}-{mark.runtime}-{mark.precision}.engine"

    def path_in(self, bundle: Bundle) -> str:
        """Where it lies in a bundle: not in the place of an engine that another version of the runtime can run."""
        mark = self.fingerprint
        with suppress(ContractError):
            if read_fingerprint(bundle, self.path).runtime_version != mark.runtime_version:
                return f"{self.path.removesuffix('.engine')}-{slug(mark.runtime_version)}.engine"
        return self.path


@dataclass(frozen=True, slots=True)
class EngineBuilder:
    """A TensorRT that was found fit for a plan.

    Attributes:
        plan: what to build.
        trt: the runtime's module.
        gpu: the GPU to build for; None ahead of time.
        caches: a folder where kernel times are kept between builds; None keeps none.
    """

    plan: EnginePlan
    trt: Any
    gpu: Gpu | None
    caches: Path | None = None

    @classmethod
    def for_plan(cls, plan: EnginePlan, *, caches: Path | None = None) -> EngineBuilder:
        """Load the runtime and check that it can do what is planned, before the long work starts.

        Raises:
            BackendUnavailableError: it cannot be loaded.
            UsageError: it builds for no such compute capability.
        """
        try:
            trt = importlib.import_module(MODULES[plan.runtime])
        except (ImportError, OSError, RuntimeError) as error:  # a library is missing behind the module
            raise BackendUnavailableError(f"{plan.runtime} cannot be loaded: {error}") from error
        unknown = [name for name in plan.options.compute_capabilities if not hasattr(trt.ComputeCapability, _sm(name))]
        if unknown:
            raise UsageError(
                f"{plan.runtime} {trt.__version__} builds for no compute capability {', '.join(unknown)}; it supports "
                f"{', '.join(_supported_capabilities(trt))}"
            )
        return cls(plan, trt, None if plan.options.compute_capabilities else find_gpus()[0], caches)

    def build(
        self,
        graph: bytes,
        *,
        source: str,
        precision: Precision,
        contract: ModelContract,
        kept_in_float: Collection[str] = (),
    ) -> BuiltEngine:
        """Build the engine of an ONNX graph.

        Args:
            graph: the graph's bytes, whole: `uint8 (N, height, width, 3)` in, `float32 (N, classes)` out.
            source: its name in the bundle.
            precision: what it must compute in, `fp32`, `fp16` or `int8`.
            contract: gives the size of tiles.
            kept_in_float: layers of an INT8 graph that are meant to be no integers, by the names of their nodes.

        Raises:
            EngineBuildError: TensorRT cannot parse or build it, or it does not compute in this precision.
        """
        messages = collected_messages(self.trt)
        builder = self.trt.Builder(messages)
        network = self._parsed(builder, messages, graph, source)
        shares = prove_network(network, self.trt, precision=precision, kept=kept_in_float)
        config = self._configure(builder, network.get_input(0).name, contract)
        cache = self._timing_cache()
        if cache:
            use_timing_cache(config, cache)
        data = builder.build_serialized_network(network, config)
        if data is None:
            raise EngineBuildError(f"{self.plan.runtime} cannot build {source}: {messages.last_error}")
        if cache:
            keep_timing_cache(config, cache)
        return self._fingerprinted(bytes(data), graph, source=source, precision=precision, shares=shares)

    def _parsed(self, builder: Any, messages: Any, graph: bytes, source: str) -> Any:
        trt = self.trt
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, messages)
        if not parser.parse(graph):
            reasons = [parser.get_error(place).desc() for place in range(parser.num_errors)]
            raise EngineBuildError(f"{self.plan.runtime} cannot parse {source}: {'; '.join(reasons)}")
        # The parser succeeds then: it clips all above 127, and only warns.
        if any("UINT8 zero_point" in warning for warning in messages.warnings):
            raise EngineBuildError(f"{self.plan.runtime} would take the unsigned integers of {source} for signed ones")
        return network

    def _configure(self, builder: Any, input_name: str, contract: ModelContract) -> Any:
        trt, options = self.trt, self.plan.options
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        profile.set_shape(input_name, *((batch, *contract.input_size, 3) for batch in self._batches))
        config.add_optimization_profile(profile)
        if options.workspace_mib:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
        config.progress_monitor = _progress_monitor(trt)
        if options.compute_capabilities:
            config.num_compute_capabilities = len(options.compute_capabilities)
            for place, capability in enumerate(options.compute_capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, _sm(capability)), place)
        else:
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the engine inspector
        if options.hardware_compat != "none":
            level = getattr(trt.HardwareCompatibilityLevel, _COMPAT[options.hardware_compat])
            config.hardware_compatibility_level = level
        return config

    @property
    def _batches(self) -> tuple[int, int, int]:
        return self.plan.options.profile(memory_gib(self.gpu) if self.gpu else None)

    def _timing_cache(self) -> Path | None:
        if self.caches is None or self.gpu is None or self.plan.runtime == "tensorrt-rtx":
            return None
        return timing_cache_file(self.caches, self.gpu, cuda=cuda_version(), tensorrt=self.trt.__version__)

    def _fingerprinted(
        self, data: bytes, graph: bytes, *, source: str, precision: Precision, shares: Shares
    ) -> BuiltEngine:
        options = self.plan.options
        least, usual, most = self._batches
        fingerprint = EngineFingerprint(
            file_sha256=sha256_bytes(data),
            source=source,
            source_sha256=sha256_bytes(graph),
            runtime=self.plan.runtime,
            runtime_version=str(self.trt.__version__),
            precision=precision,
            half_share=shares.half,
            gpu=self.gpu.name if self.gpu else None,
            cuda_version=cuda_version() if self.gpu else None,
            compute_capabilities=(self.gpu.compute_capability,) if self.gpu else options.compute_capabilities,
            hardware_compat=options.hardware_compat,
            min_batch=least,
            opt_batch=usual,
            max_batch=most,
            integer_share=shares.integer,
        )
        return BuiltEngine(data, fingerprint, shares)


def _sm(capability: str) -> str:
    """TensorRT's name of a compute capability."""
    return f"SM{capability.replace('.', '')}"


def _supported_capabilities(trt: Any) -> list[str]:
    """Those that TensorRT-RTX has names for, and runs on: it still names some that it does not."""
    numbers = sorted(int(name[2:]) for name in dir(trt.ComputeCapability) if name.startswith("SM"))
    named = [f"{number // 10}.{number % 10}" for number in numbers]
    return [name for name in named if TensorRtRtx().gpu_objection(Gpu("such GPUs", name)) is None]


def _progress_monitor(trt: Any) -> Any:
    """Shows the phases of a build, which can take many minutes, as log records."""

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.steps:
                logger.info("%s: step %d of %d", phase, step + 1, self.steps[phase])
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Progress()
