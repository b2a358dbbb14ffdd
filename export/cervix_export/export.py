"""One export: a Keras model's bundle becomes a deployable one."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import BackendUnavailableError, ContractError, ConversionError, ExportError, UsageError
from cervix_engine.files import cache_beside, sha256_file, write_json

if TYPE_CHECKING:
    from cervix_engine.bundle.certificate import Certificate
    from cervix_engine.values import Precision
    from cervix_export.engines.builder import EngineBuilder
    from cervix_export.engines.plan import EnginePlan
    from cervix_export.graphs.int8 import Int8Record

logger = logging.getLogger(__name__)

ONNX_FILE, HALF_FILE, INT8_FILE = "model.onnx", "model.fp16.onnx", "model.int8.onnx"


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What was asked for.

    Attributes:
        fp16: also make the half-precision graph.
        int8: also make the integer graph.
        engine: also build this TensorRT engine, of the half-precision graph where there is one.
        batch_size: tiles a batch while certifying.
        tiles: certify on the first so many golden tiles only; None takes all.
    """

    fp16: bool = False
    int8: bool = False
    engine: EnginePlan | None = None
    batch_size: int = 32
    tiles: int | None = None


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What came of it: the bundle as it is now, a certificate for each combination measured here, what INT8 cost."""

    bundle: Bundle
    certificates: tuple[Certificate, ...]
    int8: Int8Record | None


def export_bundle(root: Path, plan: ExportPlan, *, expect_digest: str | None = None) -> ExportReport:
    """Convert a bundle's Keras model, certify the result on its golden tiles, and put both into the bundle.

    Everything that an earlier export put there is replaced. Until all is measured the bundle stays as it was; a
    combination whose gate failed is published with `passed: false`, which the caller must make an error.

    Args:
        root: the bundle's folder.
        plan: what to make.
        expect_digest: pins the bundle.

    Raises:
        UsageError: there is no bundle, or it holds an `.h5` model.
        ContractError: it was altered.
        ExportError: the model cannot be converted, or the folder cannot be written.
        BackendError: no runtime is here to certify with, or to build the engine with.
    """
    logger.info("checking the digests of %s", root)
    bundle = Bundle.open(root, expect_digest=expect_digest)
    require_keras_model(bundle)
    require_tools()
    try:
        return _export(bundle, plan)
    except OSError as error:
        raise ExportError(f"cannot export into {root}: {error}") from error


def _export(bundle: Bundle, plan: ExportPlan) -> ExportReport:
    # Imported here: `cervix-export --help` needs neither OpenCV nor a runtime.
    from cervix_engine.bundle.golden import GoldenSet
    from cervix_export.certify import certify_all
    from cervix_export.publish import publish, staging_folder

    golden = GoldenSet.load(bundle)
    builder = _engine_builder(plan, caches=cache_beside(bundle.root))
    with staging_folder(bundle.root) as staging:
        reference, int8 = _make_graphs(bundle, staging, plan)
        if builder:
            _make_engine(builder, bundle, staging, plan)
        staged = replace(bundle, root=staging, files=_digests(staging))
        certificates = certify_all(staged, golden, reference=reference, batch_size=plan.batch_size, tiles=plan.tiles)
        return ExportReport(publish(bundle, staged, certificates=certificates), tuple(certificates), int8)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def _engine_builder(plan: ExportPlan, *, caches: Path) -> EngineBuilder | None:
    if plan.engine is None:
        return None
    from cervix_export.engines.builder import EngineBuilder

    return EngineBuilder.for_plan(plan.engine, caches=caches)


def _make_engine(builder: EngineBuilder, bundle: Bundle, folder: Path, plan: ExportPlan) -> None:
    """Write the engine of the fastest graph that was asked for into `folder`, and its fingerprint beside it."""
    from cervix_engine.backends import ARTEFACTS
    from cervix_engine.bundle.engine_file import fingerprint_path

    precision: Precision = "fp16" if plan.fp16 else "fp32"
    source = ARTEFACTS[precision]
    logger.info("building a %s engine of %s", builder.plan.runtime, source)
    graph = (folder / source).read_bytes()
    engine = builder.build(graph, source=source, precision=precision, contract=bundle.contract)
    (folder / engine.path).parent.mkdir()
    (folder / engine.path).write_bytes(engine.data)
    write_json(folder / fingerprint_path(engine.path), engine.fingerprint.to_json())
    share = engine.fingerprint.half_share
    logger.info("%s: %.2f %% of its multiply-accumulates in half precision", engine.path, 100 * share)


def _make_graphs(bundle: Bundle, folder: Path, plan: ExportPlan) -> tuple[str, Int8Record | None]:
    """Write the graphs asked for into `folder`; return what they were made with, such as `keras 3.15.1`."""
    from cervix_engine.bundle.calibration_tiles import calibration_pixels
    from cervix_keras.convert import onnx_from_keras

    # Read first: without them, the long conversion would be for nothing.
    calibration = calibration_pixels(bundle) if plan.int8 else None
    logger.info("converting model.keras to ONNX (a ResNet-101 takes about a minute)")
    reference = onnx_from_keras(bundle, folder / ONNX_FILE)
    if plan.fp16:
        from cervix_export.graphs.half import fp16_from_onnx

        logger.info("converting to FP16 and proving it")
        fp16_from_onnx(folder / ONNX_FILE, folder / HALF_FILE, contract=bundle.contract)
    if calibration is None:
        return reference, None
    from cervix_export.graphs.int8 import int8_from_onnx
    from cervix_export.publish import INT8_RECORD

    logger.info("converting to INT8 and finding out what that costs")
    record = int8_from_onnx(folder / ONNX_FILE, folder / INT8_FILE, contract=bundle.contract, tiles=calibration)
    write_json(folder / INT8_RECORD, record.to_json())
    return reference, record


_ZIP, _HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"


def require_keras_model(bundle: Bundle) -> None:
    """Check that the bundle's model is a Keras archive, by its first bytes, before any runtime sees it.

    Raises:
        UsageError: the model is an HDF5 file, whatever its name.
        ContractError: there is no model, or it is no Keras archive.
    """
    legacy = [name for name in bundle.files if name in ("model.h5", "model.hdf5")]
    if "model.keras" not in bundle:
        if legacy:
            raise UsageError(f"{bundle.root / legacy[0]}: {H5_REFUSED}")
        raise ContractError(f"{bundle.root} has no model.keras: train one with cervix-train")
    with (bundle.root / "model.keras").open("rb") as file:
        start = file.read(len(_HDF5))
    if start == _HDF5:
        raise UsageError(f"{bundle.root / 'model.keras'} is an HDF5 file: {H5_REFUSED}")
    if not start.startswith(_ZIP):
        raise ContractError(f"{bundle.root / 'model.keras'} is no Keras archive: it does not start as a zip file")


H5_REFUSED = (
    "HDF5 models are not opened, since they can run code: train with cervix-train, which writes a bundle with "
    "model.keras, and name that folder"
)


def require_tools() -> None:
    """Check that what an export needs is installed, before the long work starts.

    Raises:
        ConversionError: a converter is missing.
        BackendUnavailableError: ONNX Runtime is missing.
    """
    missing = [name for name in ("tensorflow", "keras", "tf2onnx", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConversionError(f"{', '.join(missing)} not installed: pip install 'cervix[export]'")
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendUnavailableError("ONNX Runtime is not installed: pip install 'cervix[cpu]'")
