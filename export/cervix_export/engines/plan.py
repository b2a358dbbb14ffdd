"""Whether an export also makes a TensorRT engine, and for what."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cervix_engine.errors import BackendUnavailableError, EngineIncompatibleError, UsageError
from cervix_engine.gpu import Gpu, find_gpus

if TYPE_CHECKING:  # it imports numpy, which `--help` does without
    from cervix_engine.bundle.engine_file import HardwareCompat

EngineRuntime = Literal["tensorrt", "tensorrt-rtx"]
EngineChoice = Literal["auto", "none"] | EngineRuntime


# Usual and most tiles a batch, by the least memory of a GPU in GiB: an H200 (FP16) was fastest at 256.
_SIZES = {22: (256, 512), 11: (128, 256), 0: (64, 128)}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine shall be built.

    Attributes:
        compute_capabilities: such as `8.9`, to build for ahead of time; empty builds for this machine's GPU.
        min_batch, opt_batch, max_batch: the optimisation profile, in tiles; None takes what suits the GPU.
        workspace_mib: scratch memory that kernels may use, in MiB; None sets no limit but the GPU's memory.
        hardware_compat: how far beyond the GPU it is built on the engine shall run.
    """

    compute_capabilities: tuple[str, ...] = ()
    min_batch: int = 1
    opt_batch: int | None = None
    max_batch: int | None = None
    workspace_mib: int | None = None
    hardware_compat: HardwareCompat = "none"

    def __post_init__(self) -> None:
        asked = [batch for batch in (self.min_batch, self.opt_batch, self.max_batch) if batch is not None]
        if asked != sorted(asked):
            raise UsageError(
                f"batches of {', '.join(map(str, asked))} tiles: expected --min-batch <= --opt-batch <= --max-batch"
            )

    def profile(self, memory_gib: float | None) -> tuple[int, int, int]:
        """Least, usual and most tiles a batch, for a GPU with so much memory; None where the GPU is not here."""
        usual, most = next(sizes for least, sizes in _SIZES.items() if (memory_gib or 0) >= least)
        most = self.max_batch or max(most, self.opt_batch or 0, self.min_batch)
        return self.min_batch, self.opt_batch or max(self.min_batch, min(usual, most)), most


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """An engine that will be made."""

    runtime: EngineRuntime
    options: EngineOptions


def decide_engine(
    choice: EngineChoice, options: EngineOptions, *, gpus: Callable[[], tuple[Gpu, ...]] = find_gpus
) -> EnginePlan | str | None:
    """Decide about an engine before any work is done.

    Returns:
        What to build; or why there will be none, for one line to the user; None where none was wanted.

    Raises:
        UsageError: the options do not go with the runtime, or it runs on no such GPU.
        EngineIncompatibleError: it does not run on this machine's GPU.
        BackendUnavailableError: an engine was asked for by name, and this machine cannot make it.
    """
    if options.compute_capabilities and choice != "tensorrt-rtx":
        raise UsageError("only --engine tensorrt-rtx builds ahead of time, for a --compute-capability")
    if choice == "none":
        if options != EngineOptions():
            raise UsageError("--engine none makes no engine: leave out how it shall be built")
        return None
    runtime: EngineRuntime = "tensorrt" if choice == "auto" else choice
    if options.hardware_compat != "none" and runtime == "tensorrt-rtx":
        # It would warn and go on without.
        raise UsageError(
            "--hardware-compat is for --engine tensorrt: a tensorrt-rtx engine is for --compute-capability"
        )
    reason = _obstacle(runtime, options, gpus)
    if not reason:
        return EnginePlan(runtime, options)
    if choice == "auto":
        return f"no TensorRT engine: {reason}; the bundle is complete for ONNX Runtime"
    raise BackendUnavailableError(f"no {choice} engine: {reason}")


def _obstacle(runtime: EngineRuntime, options: EngineOptions, gpus: Callable[[], tuple[Gpu, ...]]) -> str | None:
    from cervix_engine.backends.tensorrt import TensorRt, TensorRtRtx

    kind = TensorRtRtx() if runtime == "tensorrt-rtx" else TensorRt()
    named = [Gpu("such GPUs", capability) for capability in options.compute_capabilities]
    if reason := next(filter(None, map(kind.gpu_objection, named)), None):
        raise UsageError(reason)

    # The driver is loaded only where TensorRT is: without it the answer is known.
    if importlib.util.find_spec(kind.module) is None:
        return f"{kind.module} is not installed"
    if options.compute_capabilities:
        return None
    here = gpus()
    if not here:
        hint = ": name a --compute-capability to build ahead of time" if runtime == "tensorrt-rtx" else ""
        return f"this machine has no NVIDIA GPU{hint}"
    if reason := kind.gpu_objection(here[0]):
        raise EngineIncompatibleError(reason)
    return None
