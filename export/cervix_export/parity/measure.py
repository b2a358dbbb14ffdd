"""One measurement of a bundle's parity, layer by layer."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from cervix_engine.backends import Combination, open_backend, runtime_version
from cervix_engine.backends.survey import Survey, Way, survey
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.errors import BackendError, BackendUnavailableError, ContractError, UsageError
from cervix_engine.machine import cpu_class
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import TILE_STEPS
from cervix_engine.values import Pixels, Probabilities
from cervix_engine.words import counted
from cervix_export.certify import OPTIONAL_PRECISIONS, answers_of
from cervix_export.graphs.compute import answers_as_written, answers_of_graph
from cervix_export.graphs.from_keras import SIGNED_FILE
from cervix_export.parity.layers import AnswerComparison, LayerResult, Limits, compare_pixels
from cervix_export.parity.tiles import ParityTiles, golden_tiles, manifest_tiles, received
from cervix_keras.jobs import keras_answers
from cervix_keras.model_file import KERAS_FILE

logger = logging.getLogger(__name__)

_GRAPH = "model.onnx"


@dataclass(frozen=True, slots=True)
class ParityPlan:
    """What was asked for.

    Attributes:
        data: a manifest of labelled tiles; None takes the bundle's golden tiles.
        splits: which of its splits; all where empty.
        keras: whether to compute Keras's answers; None does where TensorFlow is installed.
        batch_size: tiles a batch, as deployed.
        limits: beside each precision's gate.
    """

    data: Path | None = None
    splits: tuple[str, ...] = ()
    keras: bool | None = None
    batch_size: int = 32
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What was measured.

    Attributes:
        bundle: its digest.
        reference: what the graph was compared with, such as `keras 3.15.1`.
        tiles: what was measured on, for people.
        machine: the instruction set, and the runtimes with their versions.
        at: when, in UTC, ISO 8601.
        layers: in order; a fault shows in its own layer and in none before.
    """

    bundle: str
    reference: str
    tiles: str
    machine: str
    at: str
    layers: tuple[LayerResult, ...]

    schema: ClassVar[str] = "cervix/parity/1"

    @property
    def passed(self) -> bool:
        return all(layer.passed for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        layers = [layer.to_json() for layer in self.layers]
        return {"schema": self.schema, **asdict(self), "layers": layers, "passed": self.passed}


def measure_layers(bundle: Bundle, plan: ParityPlan, *, steps: TileSteps = TILE_STEPS) -> ParityReport:
    """Measure every layer of a bundle on this machine; `steps` make pixels of the golden tiles.

    Raises:
        UsageError: the data cannot be used, or Keras is needed and not installed.
        ContractError: the bundle lacks golden tiles or a graph.
        ConversionError: Keras cannot open or compute the model.
        BackendError: a runtime failed.
    """
    if _GRAPH not in bundle:
        raise ContractError(f"{bundle.root} has no {_GRAPH}: make it with cervix-export")
    use_keras = _use_keras(bundle, plan)
    golden = GoldenSet.load(bundle)
    own = golden_tiles(golden)
    logger.info("pixels: %d golden tiles through the engine's stream", len(own.paths))
    seen = received(own, contract=bundle.contract, batch_size=plan.batch_size, steps=steps)
    layers = [compare_pixels(own, seen, digests=[tile.pixels_sha256 for tile in golden.tiles])]
    tiles, pixels = own, seen.pixels
    if plan.data is not None:
        tiles = manifest_tiles(plan.data, splits=plan.splits, contract=bundle.contract)
        pixels = _readable(tiles, bundle, plan)
    if use_keras:
        logger.info("graph: Keras's answers on %d tiles", len(pixels))
        reference, answers = keras_answers(bundle, pixels, batch_size=plan.batch_size)
    elif plan.data is not None:
        reference, answers = f"{_GRAPH} as imported", answers_of_graph(bundle.read(_GRAPH), pixels)
    else:
        reference, answers = "the golden tiles' recorded answers", golden.probabilities()
    comparison = AnswerComparison(list(tiles.paths), tiles.labels, bundle.contract.class_names, plan.limits)
    here = survey(bundle)
    layers += _answer_layers(bundle, here, pixels, comparison, reference=(reference, answers), plan=plan)
    return ParityReport(
        bundle=bundle.digest,
        reference=reference,
        tiles=f"{len(pixels)} {'golden tiles' if plan.data is None else f'tiles of {plan.data.name}'}",
        machine=", ".join([cpu_class(), *_runtimes(here)]),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        layers=tuple(layers),
    )


def _use_keras(bundle: Bundle, plan: ParityPlan) -> bool:
    installed = importlib.util.find_spec("tensorflow") is not None and KERAS_FILE in bundle
    if plan.keras and not installed:
        raise UsageError("--keras: TensorFlow is not installed, or the bundle has no model.keras")
    use = installed if plan.keras is None else plan.keras
    if plan.data is not None and not use and KERAS_FILE in bundle:
        raise UsageError("--data needs Keras, whose answers only the golden tiles record: pip install '.[export]'")
    return use


def _readable(tiles: ParityTiles, bundle: Bundle, plan: ParityPlan) -> Pixels:
    logger.info("pixels: %d tiles of %s", len(tiles.paths), plan.data)
    seen = received(tiles, contract=bundle.contract, batch_size=plan.batch_size)
    if seen.failures:
        place, failure = next(iter(seen.failures.items()))
        raise UsageError(
            f"{len(seen.failures)} of {counted(len(tiles.paths), 'tile')} cannot be used, the first is "
            f"{tiles.paths[place]}: {failure.reason}"
        )
    return seen.pixels


def _runtimes(here: Survey) -> list[str]:
    names = dict.fromkeys(way.combination.backend for way in here.runnable)
    return [f"{name} {runtime_version(name)}" for name in names]


def _answer_layers(
    bundle: Bundle,
    here: Survey,
    pixels: Pixels,
    comparison: AnswerComparison,
    *,
    reference: tuple[str, Probabilities],
    plan: ParityPlan,
) -> Iterator[LayerResult]:
    """The graph's layer, and one for each other way to run the bundle, which is held to the graph.

    Where no runtime here runs the graph, the others are held to what the graph would have been.
    """
    name, expected = reference
    exact = next((way for way in here.runnable if way.combination.artefact == _GRAPH), None)
    if exact:
        answers = _answers(bundle, exact.combination, pixels, batch_size=plan.batch_size)
        subject = f"{_GRAPH} and {name}"
        yield comparison.measure("graph", subject, precision="fp32", reference=expected, candidate=answers)
        name, expected = _GRAPH, answers
    elif here.runnable:
        logger.warning("no runtime on this machine computes %s: engines are held to %s", _GRAPH, name)
    else:
        raise BackendUnavailableError("no runtime on this machine computes a file of the bundle: see cervix-doctor")
    for way in here.runnable:
        if way is not exact:
            subject = (
                f"{way.combination.artefact} on {way.combination.backend} in {way.combination.precision}, and {name}"
            )
            yield _artefact(bundle, way, pixels, comparison, expected=(subject, expected), batch_size=plan.batch_size)
    if SIGNED_FILE in bundle and runtime_version("onnxruntime-cpu"):
        subject = f"{SIGNED_FILE} as it is written, and {name}"
        logger.info("%s", subject)
        answers = answers_as_written(bundle.read(SIGNED_FILE), pixels)
        yield comparison.measure("artefact", subject, precision="int8", reference=expected, candidate=answers)


def _artefact(
    bundle: Bundle,
    way: Way,
    pixels: Pixels,
    comparison: AnswerComparison,
    *,
    expected: tuple[str, Probabilities],
    batch_size: int,
) -> LayerResult:
    subject, reference = expected
    combination = way.combination
    certified = way.certificate is not None and way.certificate.passed
    binding = combination.precision not in OPTIONAL_PRECISIONS or certified
    try:
        answers = _answers(bundle, combination, pixels, batch_size=batch_size)
    except BackendError as error:
        return LayerResult("artefact", subject, len(pixels), None, None, None, (str(error),), binding)
    result = comparison.measure(
        "artefact", subject, precision=combination.precision, reference=reference, candidate=answers
    )
    return replace(result, binding=binding)


def _answers(bundle: Bundle, combination: Combination, pixels: Pixels, *, batch_size: int) -> Probabilities:
    logger.info("%s on %s in %s", combination.artefact, combination.backend, combination.precision)
    with open_backend(bundle, combination=combination) as backend:
        return answers_of(backend, pixels, batch_size)[0]
