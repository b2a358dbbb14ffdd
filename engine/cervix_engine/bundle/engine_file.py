"""What a TensorRT engine in a bundle was built from and for.

An engine is code for one kind of GPU and one version of its runtime. It carries a fingerprint beside it; an engine
without one, with another file's, or for another machine is refused before its runtime sees a byte.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, get_args

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import ContractError
from cervix_engine.values import Precision

HardwareCompat = Literal["none", "same-cc", "ampere+"]


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
        usual_batch: tiles a batch at which it was as fast as it can be where it was built; None where nothing ran it.
    """

    file_sha256: str
    source: str
    source_sha256: str
    runtime: str
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
    usual_batch: int | None = None

    schema: ClassVar[str] = "cervix/engine/1"

    def __post_init__(self) -> None:
        known = {"hardware_compat": HardwareCompat, "precision": Precision}
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


def fingerprint_path(engine: str) -> str:
    """Where the fingerprint of a bundle's engine lies."""
    return PurePosixPath(engine).with_suffix(".json").as_posix()


def layers_path(engine: str) -> str:
    """Where the table of an engine's layers lies, if it was built on a GPU."""
    return PurePosixPath(engine).with_suffix(".layers.json").as_posix()


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


def fingerprints_of(bundle: Bundle) -> dict[str, EngineFingerprint]:
    """The fingerprints of a bundle's engines, by the engine's name, without those that cannot be read."""
    found = {}
    for engine in engines_of(bundle):
        with suppress(ContractError):
            found[engine] = read_fingerprint(bundle, engine)
    return found


def fingerprint_problems(bundle: Bundle) -> Iterator[str]:
    """Why fingerprints of a bundle cannot be read."""
    for engine in engines_of(bundle):
        try:
            read_fingerprint(bundle, engine)
        except ContractError as error:
            yield str(error)


def rebuild_command(root: Path, fingerprint: EngineFingerprint) -> str:
    """The command that, on the machine that shall run it, builds an engine like this one."""
    precision = [f"--{fingerprint.precision}"] if fingerprint.precision in ("fp16", "int8") else []
    batches = {"min": fingerprint.min_batch, "opt": fingerprint.opt_batch, "max": fingerprint.max_batch}
    profile = [word for name, tiles in batches.items() for word in (f"--{name}-batch", str(tiles))]
    return shlex.join(["cervix-export", str(root), *precision, "--engine", fingerprint.runtime, *profile])
