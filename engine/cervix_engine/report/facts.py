"""What is known of the run and the model besides the table: told only where it surely belongs to this table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cervix_engine.errors import ContractError, OutputError, UsageError

if TYPE_CHECKING:
    from cervix_engine.bundle.bundle import Bundle
    from cervix_engine.run.record import RunRecord
from cervix_engine.tiles.discover import ignored_words

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Facts:
    """Three lists of (what, value); an empty one comes with the reason in `missing`."""

    run: Pairs
    certificate: Pairs
    model: Pairs
    missing: tuple[str, ...]


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
    return Facts(_run_facts(run) if run else [], certificate, _model_facts(bundle) if bundle else [], tuple(missing))


def _load_run(table: Path, *, tiles: int, failed: int) -> tuple[RunRecord | None, list[str]]:
    from cervix_engine.run.record import record_beside, record_of

    path = record_beside(table)
    if not path.exists():
        return None, [f"run: {path.name} does not lie beside the table"]
    try:
        run = record_of(table)
    except OutputError as error:
        return None, [f"run: {error}"]
    if (run.found, run.failed) != (tiles, failed):
        return None, [f"run: {path.name} counts {run.found} tiles, {run.failed} failed: it belongs to another table"]
    return run, []


def _run_facts(run: RunRecord) -> Pairs:
    backend, bound = run.backend, run.bound_by
    computed = "" if backend.arithmetic == backend.precision else f", computed in {backend.arithmetic}"
    return [
        *_times(run),
        ("runtime", f"{backend.backend} {backend.version}"),
        ("precision", f"{backend.precision}{computed}"),
        ("device", f"{backend.device}, {backend.device_class}, {backend.threads} threads"),
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
    facts = {"started": asked.started_at, "ended": run.ended_at, "host": asked.host, "command": asked.command}
    known = [(name, value) for name, value in facts.items() if value]
    return [*known, ("took", f"{run.seconds:,.1f} s")] if run.seconds is not None else known


def _certificate_facts(run: RunRecord, bundle: Bundle) -> Pairs:
    from cervix_engine.bundle.certificate import Certificate

    name = run.provenance.certificate
    if not name or name not in bundle:
        return []
    certificate = Certificate.from_json(bundle.read_json(name, schema=Certificate.schema))
    parity = certificate.parity
    return [
        (
            "covers",
            f"{certificate.file} on {certificate.backend} {certificate.backend_version}, {certificate.precision}",
        ),
        ("gate", "passed" if certificate.passed else "not passed"),
        ("compared with", f"{certificate.reference}, {parity.tiles:,} tiles"),
        ("same decision", f"{parity.top1_agreement:.2%}, {len(parity.flips)} changed"),
        ("largest difference", f"{parity.max_absdiff:.2g} (99th percentile {parity.p99_absdiff:.2g})"),
    ]


def _model_facts(bundle: Bundle) -> Pairs:
    contract = bundle.contract
    facts = [
        ("input", f"{contract.input_size[0]} x {contract.input_size[1]} pixels, {contract.channel_order}"),
        ("calibration temperature", _calibration(contract.temperature)),
    ]
    name = "training/metrics.json"
    if name not in bundle:
        return facts
    try:
        metrics = json.loads(bundle.read(name))
        return [
            *facts,
            (f"accuracy on its {metrics['split']} tiles", f"{metrics['accuracy']:.1%} of {metrics['tiles']:,}"),
        ]
    except (ContractError, ValueError, KeyError, TypeError):
        return facts


def _calibration(temperature: float) -> str:
    return "1, which changes nothing" if temperature == 1 else f"{temperature:.4g}, already part of the model"
