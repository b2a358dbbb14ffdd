"""A sealed bundle with certificates, and model files that nobody opens."""

from __future__ import annotations

from pathlib import Path

from cervix_engine.backends import ARTEFACTS, runtime_version
from cervix_engine.bundle.bundle import CONTRACT as CONTRACT_FILE
from cervix_engine.bundle.bundle import seal
from cervix_engine.bundle.certificate import Certificate, Parity
from cervix_engine.files import sha256_file, write_json
from cervix_engine.machine import cpu_class
from engine.table.tables import CONTRACT

CPU = "onnxruntime-cpu"


def certified_bundle(
    root: Path, *certified: tuple[str, float], version: str | None = None, device: str | None = None
) -> Path:
    """Make one with certificates of (precision, rate), by default for this machine."""
    root.mkdir()
    CONTRACT.save(root / CONTRACT_FILE)
    (root / "certificates").mkdir()
    for file in {"model.onnx", *(ARTEFACTS[precision] for precision, _ in certified)}:  # type: ignore[index]
        (root / file).write_bytes(file.encode())
    for precision, rate in certified:
        file = ARTEFACTS[precision]  # type: ignore[index]
        certificate = Certificate(
            file=file,
            file_sha256=sha256_file(root / file),
            backend=CPU,
            backend_version=version or str(runtime_version(CPU)),
            precision=precision,  # type: ignore[arg-type]
            arithmetic="fp32",
            device_class=device or cpu_class(),
            reference="keras 3",
            parity=Parity(9, 0.0, 0.0, 1.0, ()),
            tiles_per_sec=rate,
            passed=True,
        )
        write_json(root / certificate.path, certificate.to_json())
    seal(root)
    return root
