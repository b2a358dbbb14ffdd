"""The main job: a folder of tiles in, one finished table out, and a report of what happened."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cervix_engine.backends import BackendInfo, open_backend
from cervix_engine.backends.device import ANY, GPU_BACKENDS, Device
from cervix_engine.backends.selection import RequestedPrecision, replay_golden, select
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.errors import OutputError, OutputExistsError, ResumeMismatchError, UsageError
from cervix_engine.files import sha256_file
from cervix_engine.run.budget import DEFAULT_BUDGET, FailureBudget
from cervix_engine.run.journal import RunIdentity, output_errors
from cervix_engine.run.partial import PartialRun, clear_unless_begun, clear_work_folder, output_lock, work_folder
from cervix_engine.run.predict import Progress, no_progress, predict_partial
from cervix_engine.run.record import Provenance, RunReport, report_beside, settle_report
from cervix_engine.run.retry import finished_run, list_failed, require_same_run
from cervix_engine.run.tuning import Auto, fit_memory, settle
from cervix_engine.table.columns import OPTIONAL
from cervix_engine.table.coordinates import NAMES
from cervix_engine.table.formats import require_writer
from cervix_engine.table.locations import identified
from cervix_engine.table.names import escape_name
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.discover import Listing, discover

__all__ = ["BatchConfig", "discover_beside", "predict_folder", "predict_partial", "run_identity"]


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """What was asked of a run.

    Attributes:
        tiles: the root folder.
        out: where the table goes; its suffix says the format, see `output/formats.py`.
        model: the bundle's folder.
        precision: `auto`, or the one that must run.
        backend: the runtime that must run it, such as `openvino`; None takes what `precision` chooses.
        device: where it may compute; several GPUs take batches by turns.
        batch_size: tiles a batch; None and `auto` take a partial run's own, else 32, or what a short measurement finds.
            Fixed batches make rows independent of everything else.
        workers: decode threads; None takes one a usable core, `auto` as many as the model needs to be kept busy.
        overwrite: whether a finished table may be replaced.
        resume: whether a partial run that lies there is continued; else it is discarded.
        require_parity: refuse to run without a certificate.
        expect_digest: hex SHA-256 that pins the bundle.
        budget: how many tiles may fail before the run stops.
        hash_tiles: whether each row has the SHA-256 of its tile's bytes.
        judge_quality: whether each row has the flags of `quality.py`.
        coords: how names say where tiles lie, such as `{slide}_x{x}_y{y}`, or a CSV file that says it; None takes an
            earlier run's own, else what names spell out.
        retry_failures: predict only the failed rows of the finished table that lies there, and keep the others.
    """

    tiles: Path
    out: Path
    model: Path
    precision: RequestedPrecision = "auto"
    backend: str | None = None
    device: Device = ANY
    batch_size: int | Auto | None = None
    workers: int | Auto | None = None
    overwrite: bool = False
    resume: bool = True
    require_parity: bool = False
    expect_digest: str | None = None
    budget: FailureBudget = DEFAULT_BUDGET
    hash_tiles: bool = False
    judge_quality: bool = False
    coords: str | None = None
    retry_failures: bool = False

    @property
    def report_path(self) -> Path:
        return report_beside(self.out)

    def optional_columns(self, earlier: RunIdentity | None) -> tuple[str, ...]:
        """Those of `OPTIONAL` that are asked for, or that the run which is continued has."""
        chosen = {"sha256": self.hash_tiles, "quality": self.judge_quality}
        asked = {name for name, wanted in chosen.items() if wanted}
        asked |= set(earlier.columns) if earlier else set()
        return tuple(name for name in OPTIONAL if name in asked)

    def arguments(self) -> dict[str, Any]:
        """What was asked, by option, for the run's report."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: _as_json(value) for name, value in values.items()}


def _as_json(value: object) -> object:
    if isinstance(value, Path):
        return escape_name(os.fspath(value))
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Device):
        return str(value)
    return asdict(value) if isinstance(value, FailureBudget) else value


def predict_folder(config: BatchConfig, *, progress: Progress = no_progress) -> RunReport:
    """Predict every tile below `config.tiles` and write the table and its `.run.json`; go on with a partial run.

    Args:
        config: what is asked.
        progress: called with (tiles written, tiles found) after each batch.

    Raises:
        CervixError: see `errors.py`; then there is no new table at `config.out`, and what was done is kept.
    """
    started = time.perf_counter()
    check_paths(config)
    bundle = Bundle.open(config.model, expect_digest=config.expect_digest)
    with output_lock(config.out):
        try:
            partial = PartialRun.find(config.out) if config.resume else None
            if partial is not None and partial.is_committed():
                settle_report(config.report_path)
                partial.clear()
                if not config.overwrite and _asks_the_same(config, bundle, partial.journal.identity):
                    return RunReport.load(config.report_path)
                partial = None
            finished = finished_run(config.out) if config.retry_failures else None
            if finished and not finished.failed:
                return finished
            with output_errors(f"cannot look at {config.out}"):
                exists = config.out.exists()
            if exists and not config.overwrite and not finished:
                raise OutputExistsError(f"{config.out} is there already: pass --overwrite to replace it")
            return _predict(config, bundle, partial, finished, started=started, progress=progress)
        finally:
            clear_unless_begun(config.out)


def _asks_the_same(config: BatchConfig, bundle: Bundle, finished: RunIdentity) -> bool:
    same_kind = config.retry_failures == (finished.retry_of is not None)
    return same_kind and (finished.root, finished.bundle_digest) == (os.fspath(config.tiles.resolve()), bundle.digest)


def _predict(
    config: BatchConfig,
    bundle: Bundle,
    partial: PartialRun | None,
    finished: RunReport | None,
    *,
    started: float,
    progress: Progress,
) -> RunReport:
    earlier = partial.journal.identity if partial else finished.identity if finished else None
    if earlier and not config.device.allows(earlier.backend):
        raise ResumeMismatchError(
            f"the run that lies there computes on {earlier.backend}, which --device {config.device} leaves out: "
            "run it as before, or pass --no-resume to discard it"
        )
    if earlier:
        # Before the selection, which would look for another one on the earlier run's backend, and blame the machine.
        precision = earlier.precision if config.precision == "auto" else config.precision
        _require_same(
            partial, finished, replace(earlier, precision=precision, backend=config.backend or earlier.backend)
        )
    selection = select(
        bundle,
        precision=earlier.precision if earlier and config.precision == "auto" else config.precision,
        backend=earlier.backend if earlier else config.backend,
        device=config.device,
        require_parity=config.require_parity,
    )
    listing = partial.listing(config.tiles) if partial else _list(config, finished)
    with open_backend(bundle, combination=selection.combination, device=config.device) as backend:
        batch_size, workers = settle(
            backend,
            listing,
            contract=bundle.contract,
            batch_size=_batch_size(config, earlier),
            workers=config.workers,
        )
        if not earlier:
            batch_size = fit_memory(backend, batch_size, contract=bundle.contract)
        identity = run_identity(
            bundle.contract,
            backend.info,
            bundle_digest=bundle.digest,
            batch_size=batch_size,
            listing=listing,
            optional=config.optional_columns(earlier),
            coords=identified(config.coords or (earlier and earlier.coords) or NAMES),
            retry_of=finished.table.table_sha256 if finished and finished.table else None,
        )
        _require_same(partial, finished, identity)
        provenance = Provenance(
            bundle_digest=bundle.digest,
            certificate=selection.certificate.path if selection.certificate else None,
            replay_absdiff=replay_golden(bundle, backend, batch_size=batch_size),
            start_s=time.perf_counter() - started,
            arguments=config.arguments(),
        )
        partial = partial or PartialRun.create(config.out, identity=identity, listing=listing)
        return predict_partial(
            partial,
            listing,
            contract=bundle.contract,
            backend=backend,
            workers=workers,
            report_path=config.report_path,
            provenance=provenance,
            budget=config.budget,
            progress=progress,
        )


def _batch_size(config: BatchConfig, earlier: RunIdentity | None) -> int | Auto | None:
    # Rows depend on it: once a run has begun, nothing is measured or halved again.
    if earlier and (config.batch_size in (None, "auto") or _may_be_halved(config.batch_size, earlier)):
        return earlier.batch_size
    return config.batch_size


def _may_be_halved(asked: int | Auto | None, earlier: RunIdentity) -> bool:
    """Whether the same command may have begun the earlier run: on a GPU that was too full for what is asked."""
    if earlier.backend not in GPU_BACKENDS or not isinstance(asked, int):
        return False
    return any(asked >> halvings == earlier.batch_size for halvings in range(1, asked.bit_length()))


def _require_same(partial: PartialRun | None, finished: RunReport | None, now: RunIdentity) -> None:
    if finished:
        require_same_run(finished.identity, now)
    if partial:
        partial.journal.identity.check(now)


def run_identity(
    contract: ModelContract,
    info: BackendInfo,
    *,
    bundle_digest: str,
    batch_size: int,
    listing: Listing,
    optional: Collection[str] = (),
    coords: str = NAMES,
    retry_of: str | None = None,
) -> RunIdentity:
    """The identity under which a listing is predicted; `optional` names further columns, `retry_of` as there."""
    with output_errors("cannot read the listing"):
        listing_sha256 = sha256_file(listing.path)
    return RunIdentity(
        root=os.fspath(listing.root.resolve()),
        bundle_digest=bundle_digest,
        artefact_sha256=info.artefact_sha256,
        backend=info.backend,
        backend_version=info.version,
        device_class=info.digits_depend_on,
        precision=info.precision,
        threads=info.threads,
        batch_size=batch_size,
        columns=RowFormat(contract, optional=optional).columns,
        listing_sha256=listing_sha256,
        retry_of=retry_of,
        coords=coords,
    )


def discover_beside(out: Path, tiles: Path) -> Listing:
    """List the tiles below `tiles` in a new work folder beside `out`; what lay there is discarded."""
    return discover(tiles, spool=_new_work_folder(out))


def _list(config: BatchConfig, finished: RunReport | None) -> Listing:
    if finished is None:
        return discover_beside(config.out, config.tiles)
    return list_failed(config.out, finished, config.tiles, spool=_new_work_folder(config.out))


def _new_work_folder(out: Path) -> Path:
    clear_work_folder(out)
    folder = work_folder(out)
    with output_errors(f"cannot write in {out.parent}"):
        folder.mkdir()
    return folder


def check_paths(config: BatchConfig) -> None:
    """Refuse what can be seen to be wrong before anything is opened.

    Raises:
        UsageError: the tiles are no folder, or the table's name or place cannot be one.
        OutputError: there is no folder for the table.
    """
    parent, tiles, out = config.out.parent, _mode(config.tiles), _mode(config.out)
    if not stat.S_ISDIR(tiles):
        raise UsageError(f"{'not a folder' if tiles else 'no such folder'}: {config.tiles}")
    if not stat.S_ISDIR(_mode(parent)):
        raise OutputError(f"no such folder for the table: {parent}")
    if out and not stat.S_ISREG(out):
        # With --overwrite, the rename at the end would replace even a device.
        raise UsageError(f"{config.out} is a folder or special file, expected a file name for the table")
    if parent.resolve().is_relative_to(config.tiles.resolve()):
        raise UsageError(f"the table would lie among the tiles: choose --out outside {config.tiles}")
    require_writer(config.out)
    if config.coords:
        identified(config.coords)


def _mode(path: Path) -> int:
    """What lies at `path`, as `stat` says it; 0 where there is nothing or cannot be, as for a name that is too long."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0
