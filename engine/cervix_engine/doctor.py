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
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from cervix_engine.backends.runtime import Combination
from cervix_engine.backends.selection import ASKED_BY_NAME, choose
from cervix_engine.backends.survey import Survey, Way, survey
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import BackendError, CervixError
from cervix_engine.machine import cpu_class, cpu_has_bf16, usable_cpus
from cervix_engine.version import __version__
from cervix_engine.words import counted

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
    ("ray", "ray", "ray"),
    ("openslide-python", "openslide", "slides"),
    ("openslide-bin", "openslide_bin", "slides"),
    ("fsspec", "fsspec", "remote"),
    ("s3fs", "s3fs", "remote"),
    ("gcsfs", "gcsfs", "remote"),
)
_FOR = {
    "cpu": "to run bundles on the CPU",
    "gpu": "to run bundles on an NVIDIA GPU",
    "train": "to train",
    "export": "to export and certify",
    "rtx": "to build and run TensorRT-RTX engines",
    "report": "for reports and Parquet",
    "ray": "to predict on a Ray cluster",
    "slides": "to read whole slides",
    "remote": "for tiles on s3://, gs:// and https://",
}


@dataclass(frozen=True, slots=True)
class Package:
    """An optional package; `version` is None where it is not installed."""

    name: str
    extra: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One way to run a bundle, and what keeps `auto` from it.

    Attributes:
        tiles_per_sec: its rate when it was certified, where it is certified here.
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
    ways: tuple[Verdict, ...]
    missing: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    auto: str | None

    schema: ClassVar[str] = "cervix/doctor/1"

    @property
    def can_run(self) -> bool:
        return self.auto is not None

    @property
    def is_sound(self) -> bool:
        """Whether what `auto` takes is certified here, and nothing is wrong."""
        return not self.problems and any(way.chosen and way.tiles_per_sec for way in self.ways)

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, "cervix_version": __version__, **asdict(self)}


def diagnose(model: Path) -> Diagnosis:
    """Look at this machine and at the bundle `model`, which need not be there."""
    packages = tuple(installed_packages())
    gpus = tuple(find_gpus())
    bundle, state = _open_bundle(model)
    seen = survey(bundle)
    chosen = _chosen(seen) if bundle else None
    return Diagnosis(
        machine=_machine(),
        gpus=gpus,
        packages=packages,
        bundle=state,
        ways=tuple(
            _verdict(way, chosen, bundle) for way in seen.ways if way in seen.worth_naming or way.combination.engine
        ),
        missing=tuple(_missing(packages, gpus)),
        problems=(*_problems(packages, gpus), *seen.problems),
        auto=f"{chosen.backend} {chosen.precision}" if chosen else None,
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
    return bundle, f"{model}: {counted(len(bundle.files), 'file')}, all with the listed digests"


def _chosen(seen: Survey) -> Combination | None:
    with suppress(BackendError):
        return choose(seen, precision="auto").combination
    return None


def _verdict(way: Way, chosen: Combination | None, bundle: Bundle | None) -> Verdict:
    item = way.combination
    by_name = f", asked for by --{item.precision}" if item.precision in ASKED_BY_NAME else ""
    reason = way.reason or f"certified here{by_name}"
    if bundle is None and way.refusal is None:
        reason = "runs here; no bundle to look for certificates in"
    if item == chosen:
        reason = "the fastest one certified here" if way.certified else f"nothing is certified here: {reason}"
    rate = way.tiles_per_sec if way.certified else None
    return Verdict(item.backend, item.precision, item.artefact, rate, item == chosen, reason)


def _missing(packages: tuple[Package, ...], gpus: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for extra, purpose in _FOR.items():
        absent = [package.name for package in packages if package.extra == extra and not package.version]
        # One of onnxruntime and onnxruntime-gpu is enough, and without a GPU the latter is no use.
        if not absent or (extra == "gpu" and not gpus):
            continue
        if extra == "cpu" and "onnxruntime" in absent and _has(packages, "onnxruntime-gpu"):
            continue
        yield f"{', '.join(absent)}: {purpose}", f"pip install '.[{extra}]'"


def _problems(packages: tuple[Package, ...], gpus: tuple[str, ...]) -> Iterator[str]:
    if _has(packages, "onnxruntime") and _has(packages, "onnxruntime-gpu"):
        yield "onnxruntime and onnxruntime-gpu overwrite each other's files: pip uninstall both, then install one"
    if gpus and not _has(packages, "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13"):
        yield "there is a GPU that no installed runtime can use"
