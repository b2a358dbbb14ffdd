"""What runs here: every way to run a bundle on this machine, with its certificate or the reason why there is none.

The question is answered here and nowhere else. Selecting, the doctor, certifying, parity and the benchmarks read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cervix_engine.backends.device import ANY, ComputesOn, Device
from cervix_engine.backends.register import runtime_names, runtimes
from cervix_engine.backends.runtime import ARTEFACTS, Combination, Runtime
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.bundle.engine_file import fingerprint_problems, fingerprints_of
from cervix_engine.errors import BackendError


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a bundle, and what there is for and against it here.

    Attributes:
        combination: the file, the backend and the precision.
        computes_on: where the backend computes.
        refusal: why this machine does not run it, as opening it would raise; None where it does.
        certificate: that of its file, whether it counts here or not; None where there is none.
        uncertified: why no certificate counts here, such as another version of the runtime; None where one does.
    """

    combination: Combination
    computes_on: ComputesOn = "cpu"
    refusal: BackendError | None = None
    certificate: Certificate | None = None
    uncertified: str | None = None

    @property
    def certified(self) -> bool:
        """Whether it runs here, and a certificate that was passed is for this runtime and kind of device."""
        return self.refusal is None and self.uncertified is None

    @property
    def tiles_per_sec(self) -> float:
        """Its rate when it was certified; 0 where it never was."""
        return self.certificate.tiles_per_sec if self.certificate else 0.0

    @property
    def reason(self) -> str | None:
        """Why it does not run here, or is not certified here; None where it is."""
        return str(self.refusal) if self.refusal else self.uncertified


@dataclass(frozen=True, slots=True)
class Survey:
    """Every way to run a bundle on a device of this machine.

    Attributes:
        bundle: the bundle; None where any was meant.
        device: where it may compute.
        ways: from FP32 to INT8, and in the register's order; those of runtimes that compute elsewhere are left out.
        problems: engines that cannot be told what they are for.
    """

    bundle: Bundle | None
    device: Device
    ways: tuple[Way, ...]
    problems: tuple[str, ...] = ()

    @property
    def runnable(self) -> tuple[Way, ...]:
        """Those that this machine runs."""
        return tuple(way for way in self.ways if way.refusal is None)

    @property
    def worth_naming(self) -> tuple[Way, ...]:
        """Without those that need a GPU where there is none: nothing on such a machine can mend them."""
        return self.ways if self.device.gpus() else tuple(way for way in self.ways if way.computes_on == "cpu")


def survey(bundle: Bundle | None, *, device: Device = ANY, among: Sequence[Runtime] | None = None) -> Survey:
    """Look at each way to run a bundle, or any bundle, on this machine. No model is loaded.

    Args:
        bundle: an opened bundle; None asks what this machine would run of a complete one.
        device: where it may compute.
        among: the runtimes; None takes all that are registered.

    Raises:
        BackendUnavailableError: the device is not there.
        UsageError: it is several GPUs of different kinds.
        ContractError: a certificate is malformed.
    """
    device.gpus()
    issued = certificates(bundle) if bundle else []
    asked = runtimes() if among is None else among
    here = [runtime for runtime in asked if device.allows(runtime.computes_on)]
    ways = [way for runtime in here for way in _ways(runtime, bundle, device, issued)]
    order = list(ARTEFACTS)
    return Survey(
        bundle=bundle,
        device=device,
        ways=tuple(sorted(ways, key=lambda way: order.index(way.combination.precision))),
        problems=tuple(_problems(bundle)) if bundle else (),
    )


def certificates(bundle: Bundle) -> list[Certificate]:
    """All certificates of a bundle whose file is still the certified one."""
    names = [name for name in bundle.files if name.startswith("certificates/")]
    found = [Certificate.from_json(bundle.read_json(name, schema=Certificate.schema)) for name in names]
    return [item for item in found if bundle.files.get(item.file) == item.file_sha256]


def _ways(runtime: Runtime, bundle: Bundle | None, device: Device, issued: Iterable[Certificate]) -> Iterator[Way]:
    for combination in runtime.combinations(bundle):
        own = [item for item in issued if _is_of(item, combination)]
        way = Way(combination, runtime.computes_on, certificate=own[0] if own else None, uncertified="no certificate")
        try:
            runtime.require(bundle, combination, device=device)
        except BackendError as error:
            yield replace(way, refusal=error)
            continue
        here = (runtime.version(), runtime.device_class(device))
        judged = [replace(way, certificate=item, uncertified=_does_not_count(item, *here)) for item in own]
        yield next((one for one in judged if one.certified), judged[0] if judged else way)


def _is_of(certificate: Certificate, combination: Combination) -> bool:
    measured = (certificate.backend, certificate.precision, certificate.file)
    return measured == (combination.backend, combination.precision, combination.artefact)


def _does_not_count(certificate: Certificate, version: str | None, device_class: str | None) -> str | None:
    if not certificate.passed:
        return "its certificate's gate was not passed"
    if certificate.device_class != device_class:
        return f"certified on {certificate.device_class}, this is {device_class}"
    if certificate.backend_version != version:
        return f"{certificate.backend} {version} is here, certified with {certificate.backend_version}"
    return None


def _problems(bundle: Bundle) -> Iterator[str]:
    yield from fingerprint_problems(bundle)
    for engine, mark in fingerprints_of(bundle).items():
        if mark.runtime not in runtime_names():
            yield f"{engine} is for the runtime {mark.runtime!r}: unknown to this version"
