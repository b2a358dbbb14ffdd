"""One export, in two halves.

1. Graphs come from the Keras model, on a machine that has Keras: see `graphs`.
2. Engines and certificates are made for the machine that this runs on, from the bundle's graphs and golden tiles.
   Nothing but the runtimes is needed: no TensorFlow, no Keras, no ONNX package.

Where both halves are possible both are done, else the second one alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import BackendError, BackendUnavailableError, ContractError, EngineBuildError, ExportError
from cervix_engine.files import cache_beside, write_json
from cervix_export.graphs.from_keras import (
    HALF_FILE,
    INT8_FILE,
    ONNX_FILE,
    SIGNED_FILE,
    can_make_graphs,
    make_graphs,
    read_kept,
    require_graph_making,
)

if TYPE_CHECKING:
    from cervix_engine.bundle.certificate import Certificate
    from cervix_engine.values import Precision
    from cervix_export.engines.builder import BuiltEngine, EngineBuilder
    from cervix_export.engines.plan import EnginePlan
    from cervix_export.graphs.int8 import Int8Record
    from cervix_export.publish import CandidateBundle

logger = logging.getLogger(__name__)

# The graph that an engine of each precision is built from.
ENGINE_SOURCES: dict[Precision, str] = {"fp32": ONNX_FILE, "fp16": HALF_FILE, "int8": SIGNED_FILE}


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What was asked for.

    Attributes:
        fp16: also make the half-precision graph.
        int8: also make the integer graph.
        engine: also build this TensorRT engine, in each precision that was asked for, else in single precision.
        batch_size: tiles a batch while certifying.
        tiles: certify on the first so many golden tiles only; None takes all.
        keep_graphs: take the bundle's graphs as they are, also where they could be made anew.
    """

    fp16: bool = False
    int8: bool = False
    engine: EnginePlan | None = None
    batch_size: int = 32
    tiles: int | None = None
    keep_graphs: bool = False

    @property
    def graphs(self) -> list[str]:
        """The graphs that this needs."""
        asked = [ONNX_FILE, *([HALF_FILE] if self.fp16 else []), *([INT8_FILE] if self.int8 else [])]
        return list(dict.fromkeys([*asked, *(ENGINE_SOURCES[precision] for precision in self.engine_precisions)]))

    @property
    def engine_precisions(self) -> list[Precision]:
        """What engines are built for."""
        asked: list[Precision] = [*(["fp16"] if self.fp16 else []), *(["int8"] if self.int8 else [])]  # type: ignore[list-item]
        return (asked or ["fp32"]) if self.engine else []


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What came of it: the bundle as it is now, a certificate for each combination measured here, what INT8 cost."""

    bundle: Bundle
    certificates: tuple[Certificate, ...]
    int8: Int8Record | None


def export_bundle(root: Path, plan: ExportPlan, *, expect_digest: str | None = None) -> ExportReport:
    """Make a bundle's graphs where Keras is, its engine, and certificates for this machine, and put them into it.

    Graphs that are made anew replace all earlier ones, and with them go the engines and certificates that were made
    from those. All others stay: they may be other machines'. Until all is measured the bundle stays as it was; a
    combination whose gate failed is published with `passed: false`, which the caller must make an error.

    Args:
        root: the bundle's folder.
        plan: what to make.
        expect_digest: pins the bundle.

    Raises:
        UsageError: there is no bundle, or it holds an `.h5` model.
        ContractError: it was altered, or lacks graphs that it should bring.
        ExportError: the model cannot be converted, or the folder cannot be written.
        BackendError: no runtime is here to certify with, or to build the engine with.
    """
    logger.info("checking the digests of %s", root)
    bundle = Bundle.open(root, expect_digest=expect_digest)
    make_anew = _makes_graphs(bundle, plan)
    try:
        return _export(bundle, plan, make_anew=make_anew)
    except OSError as error:
        raise ExportError(f"cannot export into {root}: {error}") from error


def _makes_graphs(bundle: Bundle, plan: ExportPlan) -> bool:
    """Whether this export makes the bundle's graphs; else it has them.

    Raises:
        CervixError: neither is possible.
    """
    if can_make_graphs(bundle) and not plan.keep_graphs:
        require_graph_making(bundle)
        return True
    lacking = [name for name in plan.graphs if name not in bundle]
    if not lacking:
        logger.info("taking the bundle's graphs as they are")
        return False
    if plan.keep_graphs:
        raise ContractError(f"{bundle.root} has no {', '.join(lacking)}: make it with cervix-export where Keras is")
    require_graph_making(bundle, lacking)
    return True


def _export(bundle: Bundle, plan: ExportPlan, *, make_anew: bool) -> ExportReport:
    # Imported here: `cervix-export --help` needs neither OpenCV nor a runtime.
    from cervix_engine.bundle.golden import GoldenSet
    from cervix_export.certify import certify_all, certify_signed, recorded_reference
    from cervix_export.publish import CandidateBundle, publish, staging_folder

    golden = GoldenSet.load(bundle)
    builder = _engine_builder(plan, caches=cache_beside(bundle.root))
    with staging_folder(bundle.root) as staging:
        made = make_graphs(bundle, staging, fp16=plan.fp16, int8=plan.int8) if make_anew else None
        reference = made.reference if made else recorded_reference(bundle, golden)
        if builder:
            graphs = CandidateBundle.of(bundle, staging)
            for precision in plan.engine_precisions:
                _make_engine(builder, graphs, precision)
        candidate = CandidateBundle.of(bundle, staging)
        certificates = certify_all(candidate, golden, reference=reference, batch_size=plan.batch_size, tiles=plan.tiles)
        if SIGNED_FILE in candidate.staged:
            certificates.append(certify_signed(candidate, golden, reference=reference, tiles=plan.tiles))
        if not certificates and not builder:
            raise BackendUnavailableError(
                "no runtime is here to certify: pip install '.[cpu]', or '.[gpu]' for NVIDIA GPUs"
            )
        return ExportReport(publish(candidate, certificates), tuple(certificates), made.int8 if made else None)


def _engine_builder(plan: ExportPlan, *, caches: Path) -> EngineBuilder | None:
    if plan.engine is None:
        return None
    from cervix_export.engines.builder import EngineBuilder

    return EngineBuilder.for_plan(plan.engine, caches=caches)


def _make_engine(builder: EngineBuilder, candidate: CandidateBundle, precision: Precision) -> None:
    """Stage the engine of a precision, and its fingerprint beside it."""
    from cervix_engine.bundle.engine_file import fingerprint_path, layers_path

    source = ENGINE_SOURCES[precision]
    logger.info("building a %s engine of %s", builder.plan.runtime, source)
    engine = builder.build(
        candidate.read(source),
        source=source,
        precision=precision,
        contract=candidate.contract,
        kept_in_float=read_kept(candidate) if precision == "int8" else (),
    )
    path = engine.path_in(candidate)
    file = candidate.staging / path
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(engine.data)
    write_json(candidate.staging / fingerprint_path(path), engine.fingerprint.to_json())
    mark = engine.fingerprint
    shares = (100 * mark.half_share, 100 * (mark.integer_share or 0))
    logger.info("%s: %.2f %% of its multiply-accumulates in half precision, %.2f %% in integers", path, *shares)
    if builder.gpu:
        _keep_layers(builder, engine, candidate.staging / layers_path(path))
        usual = _usual_batch(CandidateBundle.of(candidate, candidate.staging), path)
        write_json(candidate.staging / fingerprint_path(path), replace(mark, usual_batch=usual).to_json())


def _keep_layers(builder: EngineBuilder, engine: BuiltEngine, file: Path) -> None:
    """Keep the inspector's table of layers beside the engine, and say where its kernels fall short of the network."""
    from cervix_export.engines.inspector import inspect

    try:
        table = inspect(builder.trt, engine.data)
    except EngineBuildError as error:
        logger.warning("no table of layers: %s", error)
        return
    write_json(file, table.to_json())
    if shortfall := table.shortfall(engine.shares):
        logger.warning("%s: %s", file.name, shortfall)


def _usual_batch(candidate: CandidateBundle, engine: str) -> int | None:
    """The batch size at which a new engine is as fast as it can be on this machine's GPU; None if it does not run."""
    from cervix_engine.backends import Combination, open_backend
    from cervix_engine.bundle.engine_file import read_fingerprint
    from cervix_engine.run.tuning import golden_sample, tune

    mark = read_fingerprint(candidate, engine)
    try:
        with open_backend(candidate, combination=Combination(mark.runtime, mark.precision, engine)) as backend:
            usual = tune(backend, golden_sample(candidate), contract=candidate.contract)
    except BackendError as error:
        logger.warning("no usual batch size was measured: %s", error)
        return None
    logger.info("%s: as fast as it can be from %d tiles a batch", engine, usual)
    return usual
