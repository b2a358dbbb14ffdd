"""What a TensorRT engine in a bundle was built for, and the only door through which its bytes reach a runtime.

An engine is code for one kind of GPU and one version of its runtime. It carries a fingerprint beside it; an engine
without one, with another file's, or for another machine is refused before a runtime sees a byte.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, get_args

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import ContractError, EngineIncompatibleError
from cervix_engine.gpu import Gpu
from cervix_engine.values import Precision

EngineRuntime = Literal["tensorrt", "tensorrt-rtx"]
HardwareCompat = Literal["none", "same-cc", "ampere+"]

# The module of each runtime.
MODULES: dict[EngineRuntime, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
RUNTIMES: tuple[EngineRuntime, ...] = get_args(EngineRuntime)

_AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class EngineFingerprint:
    """What an engine was built from and for.

    Attributes:
        file_sha256: the engine's own digest.
        source, source_sha256: the bundle's graph that it was built from.
        runtime, runtime_version: what built it, and alone can run it.
        precision: what was asked for.
        half_share: share of the multiply-accumulates with half-precision operands, read from the parsed network.
        gpu: name of the GPU that it was built on; None where it was built ahead of time.
        cuda_version: the driver's there; None likewise.
        compute_capabilities: those that it runs on, such as `8.9`.
        hardware_compat: how far beyond the GPU it was built on it runs.
        min_batch, opt_batch, max_batch: the optimisation profile, in tiles.
        integer_share: as `half_share`, of 8-bit integers; None where an earlier version built it.
    """

    file_sha256: str
    source: str
    source_sha256: str
    runtime: EngineRuntime
    runtime_version: str
    precision: Precision
    half_share: float
    gpu: str | None
    cuda_version: str | None
    compute_capabilities: tuple[str, ...]
    hardware_compat: HardwareCompat
    min_batch: int
    opt_batch: int
    max_batch: int
    integer_share: float | None = None

    schema: ClassVar[str] = "cervix/engine/1"

    def __post_init__(self) -> None:
        known = {"runtime": EngineRuntime, "hardware_compat": HardwareCompat, "precision": Precision}
        for name, kind in known.items():
            if getattr(self, name) not in get_args(kind):
                raise ContractError(f"engine fingerprint with {name} {getattr(self, name)!r}: unknown to this version")
        if not all(re.fullmatch(r"\d+\.\d", capability) for capability in self.compute_capabilities):
            raise ContractError(f"engine fingerprint for the compute capabilities {self.compute_capabilities}")

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self), "compute_capabilities": list(self.compute_capabilities)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineFingerprint:
        """Raises ContractError where the data are not a fingerprint."""
        values = {key: value for key, value in data.items() if key != "schema"}
        try:
            values["compute_capabilities"] = tuple(map(str, values["compute_capabilities"]))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ContractError(f"engine fingerprint is malformed: {error}") from error

    def objection(self, gpu: Gpu, runtime_version: str) -> str | None:
        """Why the engine does not run on `gpu` with this version of its runtime; None where it does."""
        if runtime_version != self.runtime_version:
            return f"it was built with {self.runtime} {self.runtime_version}, here is {runtime_version}"
        if not self._fits(gpu):
            built_for = self.gpu or f"compute capability {', '.join(self.compute_capabilities)}"
            return f"it was built for {built_for}, here is {gpu.name} ({gpu.compute_capability})"
        return None

    def _fits(self, gpu: Gpu) -> bool:
        if self.hardware_compat == "ampere+":
            return tuple(map(int, gpu.compute_capability.split("."))) >= _AMPERE
        same_capability = gpu.compute_capability in self.compute_capabilities
        # TensorRT chose kernels for one GPU's cores and memory; TensorRT-RTX chooses them where the engine is loaded.
        any_of_them = self.runtime == "tensorrt-rtx" or self.hardware_compat == "same-cc"
        return same_capability and (any_of_them or gpu.name == self.gpu)


def fingerprint_path(engine: str) -> str:
    """Where the fingerprint of a bundle's engine lies."""
    return PurePosixPath(engine).with_suffix(".json").as_posix()


def read_fingerprint(bundle: Bundle, engine: str) -> EngineFingerprint:
    """The fingerprint of a bundle's engine, such as `engines/sm89-tensorrt-rtx-fp16.engine`.

    Raises:
        ContractError: there is none, it is another engine's, or the graph it was built from is no longer there.
    """
    data = bundle.read_json(fingerprint_path(engine), schema=EngineFingerprint.schema)
    fingerprint = EngineFingerprint.from_json(data)
    if bundle.files.get(engine) != fingerprint.file_sha256:
        raise ContractError(f"{fingerprint_path(engine)} is not the fingerprint of the bundle's {engine}")
    if bundle.files.get(fingerprint.source) != fingerprint.source_sha256:
        raise ContractError(f"{engine} was built from another {fingerprint.source} than the bundle's")
    return fingerprint


def engines_of(bundle: Bundle) -> list[str]:
    """The engines of a bundle, such as `engines/sm89-tensorrt-rtx-fp16.engine`."""
    return [name for name in bundle.files if name.startswith("engines/") and name.endswith(".engine")]


def read_engine(bundle: Bundle, engine: str, *, gpu: Gpu, runtime_version: str) -> bytes:
    """The bytes of an engine that fits, hashed again. Nothing of them is parsed here.

    Raises:
        ContractError: it was altered, or has no fingerprint of its own.
        EngineIncompatibleError: as `require_fit`.
    """
    require_fit(bundle, engine, read_fingerprint(bundle, engine), gpu=gpu, runtime_version=runtime_version)
    return bundle.read(engine)


def require_fit(bundle: Bundle, engine: str, fingerprint: EngineFingerprint, *, gpu: Gpu, runtime_version: str) -> None:
    """Raise EngineIncompatibleError, with the command that rebuilds it, where an engine is for another machine."""
    objection = fingerprint.objection(gpu, runtime_version)
    if objection:
        raise EngineIncompatibleError(
            f"{engine} does not fit this machine: {objection}; rebuild it: {rebuild_command(bundle.root, fingerprint)}"
        )


def rebuild_command(root: Path, fingerprint: EngineFingerprint) -> str:
    """The command that, on the machine that shall run it, builds an engine like this one."""
    precision = [f"--{fingerprint.precision}"] if fingerprint.precision in ("fp16", "int8") else []
    batches = {"min": fingerprint.min_batch, "opt": fingerprint.opt_batch, "max": fingerprint.max_batch}
    profile = [word for name, tiles in batches.items() for word in (f"--{name}-batch", str(tiles))]
    return shlex.join(["cervix-export", str(root), *precision, "--engine", fingerprint.runtime, *profile])
