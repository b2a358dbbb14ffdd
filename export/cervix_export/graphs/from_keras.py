"""The first half of an export: a bundle's Keras model -> its ONNX graphs. All that needs TensorFlow is here."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.imported import is_imported
from cervix_engine.errors import BackendUnavailableError, ContractError, ConversionError
from cervix_engine.files import write_json
from cervix_keras.graph import missing_converters
from cervix_keras.model_file import KERAS_FILE, require_keras_model

if TYPE_CHECKING:
    from cervix_export.graphs.int8 import Int8Record

logger = logging.getLogger(__name__)

ONNX_FILE, HALF_FILE, INT8_FILE = "model.onnx", "model.fp16.onnx", "model.int8.onnx"
# What TensorRT's INT8 engines are built from: it takes signed integers only.
SIGNED_FILE = "model.int8-signed.onnx"
INT8_RECORD = "model.int8.json"

# Tiles on which the folded graph is held against the converted one; certificates hold it against Keras on all.
_COMPARED = 32


@dataclass(frozen=True, slots=True)
class MadeGraphs:
    """What the graphs were made with, such as `keras 3.15.1`, and what INT8 cost where it was asked for."""

    reference: str
    int8: Int8Record | None


def make_graphs(bundle: Bundle, folder: Path, *, fp16: bool, int8: bool) -> MadeGraphs:
    """Write the FP32 graph of a bundle's model into `folder`, and those of other precisions asked for.

    Raises:
        ContractError: INT8 was asked for, and the bundle has no calibration tiles.
        ConversionError: the model cannot be converted.
    """
    from cervix_engine.bundle.calibration_tiles import calibration_pixels

    # Read first: without them, the long conversion would be for nothing.
    calibration = calibration_pixels(bundle) if int8 else None
    reference = _single_precision(bundle, folder / ONNX_FILE)
    if fp16:
        from cervix_export.graphs.half import fp16_from_onnx

        logger.info("converting to FP16 and proving it")
        fp16_from_onnx(folder / ONNX_FILE, folder / HALF_FILE, contract=bundle.contract)
    if calibration is None:
        return MadeGraphs(reference, None)
    from cervix_export.graphs.int8 import int8_from_onnx

    logger.info("converting to INT8 and finding out what that costs")
    record = int8_from_onnx(
        folder / ONNX_FILE,
        folder / INT8_FILE,
        contract=bundle.contract,
        tiles=calibration,
        signed_file=folder / SIGNED_FILE,
    )
    write_json(folder / INT8_RECORD, record.to_json())
    return MadeGraphs(reference, record)


def _single_precision(bundle: Bundle, onnx_file: Path) -> str:
    """Write the FP32 graph, converted from Keras or as it was imported; returns what answered the golden tiles."""
    from cervix_engine.bundle.golden import GoldenSet
    from cervix_export.graphs.fold import fold_onnx
    from cervix_keras.jobs import onnx_from_keras

    golden = GoldenSet.load(bundle)
    if KERAS_FILE not in bundle:
        onnx_file.write_bytes(bundle.read(ONNX_FILE))
        return golden.reference or "the imported graph"
    logger.info("converting %s to ONNX (a ResNet-101 takes about a minute)", KERAS_FILE)
    reference = onnx_from_keras(bundle, onnx_file)
    fold_onnx(onnx_file, contract=bundle.contract, pixels=golden.pixels(_COMPARED))
    return reference


def read_kept(bundle: Bundle) -> tuple[str, ...]:
    """The layers that a bundle's signed INT8 graph keeps in float, by the names of their nodes.

    Raises:
        ContractError: it has no record of how they were made, or one that does not say.
    """
    record = bundle.read_json(INT8_RECORD, schema="cervix/int8/1")
    if not isinstance(record.get("kept_when_signed"), list):
        raise ContractError(f"{INT8_RECORD} does not list what was kept in float: export again with --int8")
    return tuple(map(str, record["kept_when_signed"]))


def can_make_graphs(bundle: Bundle) -> bool:
    """Whether this machine has what makes the graphs of a bundle from its Keras model, or from an imported graph."""
    if _has_imported_graph(bundle):
        return not (_missing("onnx") or _missing_runtime())
    return KERAS_FILE in bundle and not (missing_converters() or _missing_runtime())


def require_graph_making(bundle: Bundle, lacking: Sequence[str] = ()) -> None:
    """Check that graphs can be made, before the long work starts; `lacking` are those that the bundle does not have.

    Raises:
        UsageError: the model is an HDF5 file, whatever its name.
        ContractError: there is no model, or it is no Keras archive.
        ConversionError: a converter is missing.
        BackendUnavailableError: ONNX Runtime is missing.
    """
    imported = _has_imported_graph(bundle)
    if not imported:
        require_keras_model(bundle)
    if missing := [name for name in ("onnx",) if _missing(name)] if imported else missing_converters():
        raise ConversionError(
            f"the bundle has no {', '.join(lacking)}, and to make it {', '.join(missing)} are missing: "
            "pip install '.[export]'"
        )
    if _missing_runtime():
        raise BackendUnavailableError("ONNX Runtime is not installed: pip install '.[cpu]'")


def _has_imported_graph(bundle: Bundle) -> bool:
    return is_imported(bundle) and KERAS_FILE not in bundle and ONNX_FILE in bundle


def _missing_runtime() -> bool:
    return _missing("onnxruntime")


def _missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None
