"""What is known of the run and the model besides the table: told only where it surely belongs to this table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cervix_engine.drift.words import drift_word
from cervix_engine.errors import ContractError, OutputError, UsageError
from cervix_engine.words import counted

if TYPE_CHECKING:
    from cervix_engine.bundle.bundle import Bundle
    from cervix_engine.contract import OperatingPoint
    from cervix_engine.drift.watch import DriftFinding
    from cervix_engine.run.record import RunRecord
from cervix_engine.tiles.discover import ignored_words

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Facts:
    """Three lists of (what, value); an empty one comes with the reason in `missing`.

    `headline` says in one line what computed the table, by which operating point it decides, and when; empty where no
    run is known. Drift is as the run found it.
    """

    run: Pairs
    certificate: Pairs
    model: Pairs
    missing: tuple[str, ...]
    headline: str = ""
    drift: DriftFinding | None = None


def load_facts(table: Path, *, bundle: Bundle | None, tiles: int, failed: int) -> Facts:
    """Facts of the run (`<table>.run.json`) and of its bundle.

    Raises:
        UsageError: the bundle named is not the one that made this table.
    """
    run, missing = _load_run(table, tiles=tiles, failed=failed)
    if bundle is None:
        missing.append("certificate and calibration: name the bundle with --model")
    elif run is not None and run.provenance.bundle_digest != bundle.digest:
        raise UsageError(
            f"{table} was made with another bundle than {bundle.root}: its digest is not in the run's file"
        )
    certificate = _certificate_facts(run, bundle) if run and bundle else []
    if bundle is not None and not certificate:
        missing.append("certificate: none covered this run")
    model, headline = _model_facts(bundle) if bundle else [], _headline(run) if run else ""
    return Facts(
        _run_facts(run) if run else [], certificate, model, tuple(missing), headline, run.drift if run else None
    )


def drifted_slides(table: Path, *, tiles: int, failed: int) -> frozenset[str]:
    """The slides that the run of a table found unlike the training tiles, as far as its record lies beside it."""
    run, _ = _load_run(table, tiles=tiles, failed=failed)
    return frozenset(run.drift.drifted_slides) if run and run.drift else frozenset()


def _load_run(table: Path, *, tiles: int, failed: int) -> tuple[RunRecord | None, list[str]]:
    from cervix_engine.run.assembly.beside import record_of
    from cervix_engine.run.record import record_beside

    path = record_beside(table)
    if not path.exists():
        return None, [f"run: {path.name} does not lie beside the table"]
    try:
        run = record_of(table)
    except OutputError as error:
        return None, [f"run: {error}"]
    if (run.found, run.failed) != (tiles, failed):
        counts = f"{counted(run.found, 'tile')}, {run.failed} failed"
        return None, [f"run: {path.name} counts {counts}: it belongs to another table"]
    return run, []


def _headline(run: RunRecord) -> str:
    backend, point = run.backend, run.identity.operating_point
    parts = [
        f"Computed in {backend.precision} by {backend.backend} {backend.version}",
        f"abnormal from a probability of {point.abnormal_at:g} on" if point else "no operating point",
        drift_word(run.drift),
    ]
    if run.seconds is not None:
        times = f"{moment(run.provenance.started_at)} to {moment(run.ended_at)}"
        parts.append(f"{times} ({run.seconds:,.1f} s)")
    return f"{', '.join(parts)}."


def moment(time: str | None) -> str:
    """A time in ISO 8601, UTC, as a person reads it."""
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M:%S UTC") if time else "?"


def _point_facts(point: OperatingPoint) -> Pairs:
    return [
        ("operating point", f"abnormal from a probability of {point.abnormal_at:g} on"),
        ("review", point.review_words),
    ]


def _run_facts(run: RunRecord) -> Pairs:
    backend, bound = run.backend, run.bound_by
    computed = "" if backend.arithmetic == backend.precision else f", computed in {backend.arithmetic}"
    return [
        *_times(run),
        *(_point_facts(run.identity.operating_point) if run.identity.operating_point else []),
        ("runtime", f"{backend.backend} {backend.version}"),
        ("precision", f"{backend.precision}{computed}"),
        ("device", f"{backend.device}, {backend.device_class}, {counted(backend.threads, 'thread')}"),
        ("file", f"{backend.artefact} ({backend.artefact_sha256[:12]}…)"),
        ("bundle", f"{run.provenance.bundle_digest[:12]}…"),
        ("batch size", str(run.batch_size)),
        ("speed", f"{run.tiles_per_sec:,.1f} tiles/s over {run.stream_s:,.1f} s, bound by {bound.stage}"),
        ("golden tiles at the start", f"largest difference from Keras {run.provenance.replay_absdiff:.2g}"),
        (
            "other files ignored",
            f"{run.ignored:,}" + (f": {words}" if (words := ignored_words(run.ignored_by)) else ""),
        ),
    ]


def _times(run: RunRecord) -> Pairs:
    asked = run.provenance
    facts = {
        "started": asked.started_at and moment(asked.started_at),
        "ended": run.ended_at and moment(run.ended_at),
        "host": asked.host,
        "command": asked.command,
    }
    known = [(name, value) for name, value in facts.items() if value]
    return [*known, ("took", f"{run.seconds:,.1f} s")] if run.seconds is not None else known


def _certificate_facts(run: RunRecord, bundle: Bundle) -> Pairs:
    from cervix_engine.bundle.certificate import Certificate

    name = run.provenance.certificate
    if not name or name not in bundle:
        return []
    certificate = Certificate.from_json(bundle.read_json(name, schema=Certificate.schema))
    parity, changed = certificate.parity, len(certificate.parity.flips)
    return [
        (
            "covers",
            f"{certificate.file} on {certificate.backend} {certificate.backend_version}, {certificate.precision}",
        ),
        ("gate", "passed" if certificate.passed else "not passed"),
        ("compared with", f"{certificate.reference}, {parity.tiles:,} tiles"),
        ("same decision", f"{parity.top1_agreement:.2%}, {counted(changed, 'decision')} changed"),
        ("largest difference", f"{parity.max_absdiff:.2g} (99th percentile {parity.p99_absdiff:.2g})"),
    ]


def _model_facts(bundle: Bundle) -> Pairs:
    contract = bundle.contract
    facts = [
        ("input", f"{contract.input_size[0]} x {contract.input_size[1]} pixels, {contract.channel_order}"),
        ("calibration temperature", _calibration(contract.temperature)),
    ]
    return [
        *facts,
        *_from_training(bundle, "metrics", _accuracy),
        *_from_training(bundle, "operating_point", _promises),
    ]


def _from_training(bundle: Bundle, name: str, told: Callable[[Any], Pairs]) -> Pairs:
    """What a file of the training tells; nothing where it is not there or not as expected."""
    if f"training/{name}.json" not in bundle:
        return []
    try:
        return told(json.loads(bundle.read(f"training/{name}.json")))
    except (ContractError, ValueError, KeyError, TypeError):
        return []


def _accuracy(metrics: Any) -> Pairs:
    return [(f"accuracy on its {metrics['split']} tiles", f"{metrics['accuracy']:.1%} of {metrics['tiles']:,}")]


def _promises(report: Any) -> Pairs:
    """What the bundle's own operating point is worth on the tiles that it was chosen by, and on those it never saw."""
    facts = []
    for split in ("val", "test"):
        if report[split]:
            worth = report[split]["thresholds"][0]
            shares = (
                f"{name} {worth[name]:.1%} ({worth[f'{name}_interval'][0]:.1%} to {worth[f'{name}_interval'][1]:.1%})"
                for name in ("sensitivity", "specificity")
            )
            facts.append((f"its own operating point, {split}", f"{worth['abnormal_at']:g}: {', '.join(shares)}"))
    return facts


def _calibration(temperature: float) -> str:
    return "1, which changes nothing" if temperature == 1 else f"{temperature:.4g}, already part of the model"
