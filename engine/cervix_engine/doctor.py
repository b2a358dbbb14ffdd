"""What is on this machine, what `--precision auto` will take here and why, and what is missing with the line for it.

Nothing is loaded that a user did not install; a runtime that is absent is a finding, never an error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from cervix_engine import gpu
from cervix_engine.backends import (
    ARTEFACTS,
    GRAPH_BACKENDS,
    Combination,
    device_class,
    objection,
    runtime_version,
)
from cervix_engine.backends.device import GPU_BACKENDS
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.bundle.engine_file import engines_of, read_fingerprint
from cervix_engine.errors import BackendError, BackendUnavailableError, CervixError, ContractError
from cervix_engine.machine import cpu_class, cpu_has_bf16, usable_cpus
from cervix_engine.version import __version__

# (distribution, module, extra that installs it); the distribution names the version.
PACKAGES = (
    ("onnxruntime", "onnxruntime", "cpu"),
    ("onnxruntime-ep-openvino", "onnxruntime_ep_openvino", "cpu"),
    ("openvino", "openvino", "cpu"),
    ("onnxruntime-gpu", "onnxruntime", "gpu"),
    ("tensorrt", "tensorrt", "gpu"),
    ("cuda-core", "cuda", "gpu"),
    ("tensorrt-rtx-cu13", "tensorrt_rtx", "rtx"),
    ("tensorflow", "tensorflow", "train"),
    ("keras", "keras", "train"),
    ("tf2onnx", "tf2onnx", "export"),
    ("onnx", "onnx", "export"),
    ("pyarrow", "pyarrow", "report"),
    ("jinja2", "jinja2", "report"),
)
_FOR = {
    "cpu": "to run bundles on the CPU",
    "gpu": "to run bundles on an NVIDIA GPU",
    "train": "to train",
    "export": "to export and certify",
    "rtx": "to build and run TensorRT-RTX engines",
    "report": "for reports and Parquet",
}


@dataclass(frozen=True, slots=True)
class Package:
    """An optional package; `version` is None where it is not installed."""

    name: str
    extra: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a bundle, and what speaks against it.

    Attributes:
        tiles_per_sec: the certificate's rate where one covers it here.
        chosen: whether `auto` takes it.
        reason: why it is taken, or why not.
    """

    backend: str
    precision: str
    artefact: str
    tiles_per_sec: float | None
    chosen: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `cervix-doctor` found.

    Attributes:
        machine: (what, value).
        gpus: as the driver names them.
        bundle: what became of opening it.
        ways: every backend and precision, with the verdict.
        missing: (what for, the line that installs it).
        problems: what is wrong rather than absent.
        auto: what `--precision auto` takes; None where no bundle can be run.
    """

    machine: dict[str, str]
    gpus: tuple[str, ...]
    packages: tuple[Package, ...]
    bundle: str
    ways: tuple[Way, ...]
    missing: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    auto: str | None

    schema: ClassVar[str] = "cervix/doctor/1"

    @property
    def can_run(self) -> bool:
        return self.auto is not None

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, "cervix_version": __version__, **asdict(self)}


def diagnose(model: Path) -> Diagnosis:
    """Look at this machine and at the bundle `model`, which need not be there."""
    packages = tuple(installed_packages())
    gpus = tuple(find_gpus())
    bundle, state = _open_bundle(model)
    ways = tuple(_ways(bundle)) if _has(packages, "onnxruntime", "onnxruntime-gpu") else ()
    chosen = next((f"{way.backend} {way.precision}" for way in ways if way.chosen), None)
    return Diagnosis(
        machine=_machine(),
        gpus=gpus,
        packages=packages,
        bundle=state,
        ways=ways,
        missing=tuple(_missing(packages, gpus)),
        problems=(*_problems(packages, gpus), *(_engine_problems(bundle) if bundle else ())),
        auto=chosen if bundle is not None else None,
    )


def installed_packages() -> Iterator[Package]:
    """The optional packages with their versions."""
    for name, module, extra in PACKAGES:
        yield Package(name, extra, _version(name) if importlib.util.find_spec(module) else None)


def find_gpus() -> Iterator[str]:
    """The NVIDIA GPUs that the driver lists."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    query = [program, "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        if line.count(",") == 3:
            name, capability, memory, driver = (part.strip() for part in line.split(","))
            yield f"{name}, compute capability {capability}, {memory}, driver {driver}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has(packages: tuple[Package, ...], *names: str) -> bool:
    return any(package.version for package in packages if package.name in names)


def _machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cervix": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": f"{usable_cpus()} usable",
        "memory": f"{memory:.1f} GiB",
        "cpu": f"{cpu_class()}, BF16 {'in hardware' if cpu_has_bf16() else 'not in hardware'}",
    }


def _open_bundle(model: Path) -> tuple[Bundle | None, str]:
    try:
        bundle = Bundle.open(model)
    except CervixError as error:
        return None, str(error)
    return bundle, f"{model}: {len(bundle.files)} files, all with the listed digests"


def _ways(bundle: Bundle | None) -> Iterator[Way]:
    from cervix_engine.backends.selection import certificates, select

    issued = {Combination.certified_by(item): item for item in certificates(bundle)} if bundle else {}
    try:
        chosen = select(bundle, precision="auto").combination if bundle else None
    except BackendUnavailableError:
        chosen = None
    # Without a GPU, four lines that nothing on this machine can mend would hide the others.
    hidden = () if gpu.find_gpus() else GPU_BACKENDS
    backends = [backend for backend in GRAPH_BACKENDS if backend not in hidden]
    graphs = [Combination(backend, precision) for precision in ARTEFACTS for backend in backends]
    for combination in (*graphs, *(_engines(bundle) if bundle else ())):
        certificate = issued.get(combination)
        against = _objection(bundle, combination, certificate)
        rate = certificate.tiles_per_sec if certificate and not against else None
        reason = against or "certified here"
        if combination == chosen:
            reason = "the fastest one certified here" if not against else f"nothing is certified here: {against}"
        yield Way(combination.backend, combination.precision, combination.artefact, rate, combination == chosen, reason)


def _engines(bundle: Bundle) -> Iterator[Combination]:
    for name in engines_of(bundle):
        if _fingerprint_problem(bundle, name) is None:
            mark = read_fingerprint(bundle, name)
            yield Combination(mark.runtime, mark.precision, name)


def _objection(bundle: Bundle | None, combination: Combination, certificate: Certificate | None) -> str | None:
    """What keeps `auto` from this combination; None where nothing does."""
    if bundle is not None and combination.artefact not in bundle:
        return f"the bundle has no {combination.artefact}"
    reason = _why_not_here(bundle, combination)
    if reason:
        return reason
    if bundle is None:
        return "runs here; no bundle to look for certificates in"
    return _certificate_objection(certificate)


def _certificate_objection(certificate: Certificate | None) -> str | None:
    if certificate is None:
        return "no certificate"
    if not certificate.passed:
        return "its certificate's gate was not passed"
    here = device_class(certificate.backend)
    if certificate.device_class != here:
        return f"certified on {certificate.device_class}, this is {here}"
    version = runtime_version(certificate.backend)
    if certificate.backend_version != version:
        return f"certified with version {certificate.backend_version}, here is {version}"
    return None


def _why_not_here(bundle: Bundle | None, combination: Combination) -> str | None:
    from cervix_engine.backends.tensorrt import require_fitting

    if bundle is None or combination.engine is None:
        return objection(combination.backend, combination.precision)
    try:
        require_fitting(bundle, combination.engine, read_fingerprint(bundle, combination.engine))
    except BackendError as error:
        return str(error)
    return None


def _missing(packages: tuple[Package, ...], gpus: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for extra, purpose in _FOR.items():
        absent = [package.name for package in packages if package.extra == extra and not package.version]
        # One of onnxruntime and onnxruntime-gpu is enough, and without a GPU the latter is no use.
        if not absent or (extra == "gpu" and not gpus):
            continue
        if extra == "cpu" and "onnxruntime" in absent and _has(packages, "onnxruntime-gpu"):
            continue
        yield f"{', '.join(absent)}: {purpose}", f"pip install 'cervix[{extra}]'"


def _engine_problems(bundle: Bundle) -> Iterator[str]:
    return filter(None, (_fingerprint_problem(bundle, name) for name in engines_of(bundle)))


def _fingerprint_problem(bundle: Bundle, engine: str) -> str | None:
    try:
        read_fingerprint(bundle, engine)
    except ContractError as error:
        return str(error)
    return None


def _problems(packages: tuple[Package, ...], gpus: tuple[str, ...]) -> Iterator[str]:
    if _has(packages, "onnxruntime") and _has(packages, "onnxruntime-gpu"):
        yield "onnxruntime and onnxruntime-gpu overwrite each other's files: pip uninstall both, then install one"
    if gpus and not _has(packages, "onnxruntime-gpu", "tensorrt"):
        yield "there is a GPU that no installed runtime can use"
