"""One import: from somebody else's model file to a sealed bundle, which is certified like any other afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cervix_engine.bundle.bundle import CONTRACT, Bundle
from cervix_engine.bundle.calibration_tiles import COUNT as CALIBRATION_TILES
from cervix_engine.bundle.calibration_tiles import write_calibration_tiles
from cervix_engine.bundle.golden import write_golden
from cervix_engine.bundle.imported import RECORD_FILE, RECORD_SCHEMA, ImportStatement
from cervix_engine.bundle.output_folder import check_output, whole_folder
from cervix_engine.bundle.outputs import check_outputs
from cervix_engine.errors import ConversionError, UsageError
from cervix_engine.extras import require_installed
from cervix_engine.files import sha256_bytes, write_json
from cervix_engine.report.card import seal_with_card
from cervix_engine.values import Pixels, Probabilities
from cervix_export.graphs.from_keras import ONNX_FILE
from cervix_export.imported.checks import Checks, check_answers
from cervix_export.imported.given_tiles import GivenTile, pixels_of, read_folder, read_given
from cervix_keras.model_file import KERAS_FILE, refuse_hdf5

logger = logging.getLogger(__name__)

# Tiles on which other statements are tried, where the stated one does not fit.
_TRIED = 16
_SEED = 0


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What was asked for.

    Attributes:
        model: a `.keras` or an `.onnx` file.
        statement: what is stated of it.
        golden: a folder of tiles, or a CSV file that lists them.
        expected: a CSV file with answers or labels, None where there is none.
        calibration: a folder of other tiles, which INT8 needs; None where there is none.
        out: where the bundle goes.
        atol: how far a probability may be from an expected one.
        overwrite: whether a bundle at `out` may be replaced.
    """

    model: Path
    statement: ImportStatement
    golden: Path
    expected: Path | None
    calibration: Path | None
    out: Path
    atol: float
    overwrite: bool


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What came of it: the bundle, on how many golden tiles it will be certified, and what was checked."""

    bundle: Bundle
    tiles: int
    reference: str
    checks: Checks


@dataclass(frozen=True, slots=True)
class _BroughtIn:
    """A model at raw pixels: its file lies in the bundle's folder.

    Attributes:
        reference: what answered, such as `onnxruntime 1.32.0`.
        answers: to the golden tiles, `float32 (N, classes)`.
        restated: as in `check_answers`.
    """

    reference: str
    answers: Probabilities
    restated: Callable[[ImportStatement], Probabilities] | None = None


def import_model(plan: ImportPlan) -> ImportReport:
    """Bring a model to raw pixels, check it on golden tiles, and write the bundle.

    Raises:
        UsageError: an input is missing or of a kind that is not imported.
        ConversionError, ContractError: the model is not what is stated of it.
        ParityError: it does not answer as expected.
        OutputError: the bundle cannot be written.
    """
    bring_in = _kind(plan.model)
    check_output(plan.out, overwrite=plan.overwrite, inputs=(plan.model, plan.golden, plan.expected, plan.calibration))
    contract = plan.statement.contract
    tiles = read_given(plan.golden, plan.expected, contract=contract)
    calibration = read_folder(plan.calibration, count=CALIBRATION_TILES) if plan.calibration else {}
    pixels = pixels_of(tiles, contract=contract)
    data = _read(plan.model)
    with whole_folder(plan.out, overwrite=plan.overwrite) as folder:
        contract.save(folder / CONTRACT)
        brought = bring_in(plan, data, pixels, folder)
        checks = check_answers(
            tiles, brought.answers, statement=plan.statement, atol=plan.atol, restated=brought.restated
        )
        _write_tiles(folder, plan, tiles, brought, calibration)
        _write_record(folder / RECORD_FILE, plan, sha256_bytes(data), brought, checks, tiles=len(tiles))
        seal_with_card(folder)
    return ImportReport(Bundle.open(plan.out), len(tiles), brought.reference, checks)


_BringIn = Callable[[ImportPlan, bytes, Pixels, Path], _BroughtIn]


def _kind(model: Path) -> _BringIn:
    refuse_hdf5(model)
    kinds: dict[str, _BringIn] = {".onnx": _from_onnx, ".keras": _from_keras}
    if model.suffix.lower() not in kinds:
        raise UsageError(
            f"{model}: expected a .keras or an .onnx file; what PyTorch trained is exported to ONNX first, see "
            "docs/import.md"
        )
    if not model.is_file():
        raise UsageError(f"no such model: {model}")
    return kinds[model.suffix.lower()]


def _from_onnx(plan: ImportPlan, data: bytes, pixels: Pixels, folder: Path) -> _BroughtIn:
    require_installed("export", "onnx", work="an import of ONNX")
    require_installed("cpu", "onnxruntime", work="an import of ONNX")
    import onnx
    import onnxruntime

    from cervix_export.graphs.compute import answers
    from cervix_export.imported.raw_pixels import checked_bytes, raw_outputs, raw_pixel_graph, read_graph

    model = read_graph(data, name=plan.model.name)
    whole = raw_pixel_graph(model, plan.statement)
    sources = {f"cervix.{CONTRACT}.sha256": sha256_bytes((folder / CONTRACT).read_bytes())}
    onnx.helper.set_model_props(whole, {**sources, "cervix.imported.sha256": sha256_bytes(data)})
    (folder / ONNX_FILE).write_bytes(checked_bytes(whole, plan.statement))
    check_outputs(raw_outputs(model, plan.statement, pixels[:_TRIED]), stated=plan.statement.output)
    logger.info("answers of %s to %d golden tiles", plan.model.name, len(pixels))
    given = answers(whole, pixels)

    def restated(statement: ImportStatement) -> Probabilities:
        return answers(raw_pixel_graph(model, statement), pixels[:_TRIED])

    return _BroughtIn(f"onnxruntime {onnxruntime.__version__}", given, restated)


def _from_keras(plan: ImportPlan, data: bytes, pixels: Pixels, folder: Path) -> _BroughtIn:  # noqa: ARG001 - the child reads it
    require_installed("export", "tensorflow", "keras", work="an import of a Keras model")
    from cervix_keras.jobs import import_keras

    logger.info("opening %s in a process of its own, and its answers to %d golden tiles", plan.model.name, len(pixels))
    reference, answers = import_keras(plan.model, plan.statement, pixels, keras_file=folder / KERAS_FILE)
    if answers.shape != (len(pixels), len(plan.statement.contract.classes)):
        raise ConversionError(f"the model gives {answers.shape} for {len(pixels)} tiles")
    return _BroughtIn(reference, answers)


def _write_tiles(
    folder: Path, plan: ImportPlan, tiles: Sequence[GivenTile], brought: _BroughtIn, calibration: dict[str, bytes]
) -> None:
    write_golden(
        folder,
        [tile.data for tile in tiles],
        labels=[tile.label for tile in tiles],
        probabilities=brought.answers,
        contract=plan.statement.contract,
        reference=brought.reference,
    )
    golden = {sha256_bytes(tile.data) for tile in tiles}
    if doubled := [path for path, data in calibration.items() if sha256_bytes(data) in golden]:
        raise UsageError(f"--calibration: {doubled[0]} is a golden tile too, on which INT8 would be judged")
    if calibration:
        write_calibration_tiles(folder, calibration, seed=_SEED)


def _write_record(
    path: Path, plan: ImportPlan, digest: str, brought: _BroughtIn, checks: Checks, *, tiles: int
) -> None:
    record: dict[str, Any] = {
        "schema": RECORD_SCHEMA,
        "source": {"file": plan.model.name, "sha256": digest},
        "stated": plan.statement.to_json(),
        "reference": brought.reference,
        "golden_tiles": tiles,
        **checks.to_json(),
    }
    write_json(path, record)


def _read(model: Path) -> bytes:
    try:
        return model.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {model}: {error.strerror}") from error
