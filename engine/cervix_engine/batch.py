"""The main job: a folder of tiles in, one finished table out, and a report of what happened."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cervix_engine import __version__
from cervix_engine.backends import Backend, BackendInfo, open_backend
from cervix_engine.bundle import Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.discover import Listing, discover
from cervix_engine.errors import OutputError, OutputExistsError, UsageError
from cervix_engine.files import write_json
from cervix_engine.machine import usable_cpus
from cervix_engine.output.csv_table import CsvTable
from cervix_engine.output.rows import RowFormat
from cervix_engine.pipeline.stats import StageStats, StreamStats
from cervix_engine.pipeline.stream import BatchResult, StreamSettings, batches_of, stream
from cervix_engine.selection import RequestedPrecision, replay_golden, select
from cervix_engine.tiles import TileFailure

DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """What was asked of a run.

    Attributes:
        tiles: the root folder.
        out: where the table goes.
        model: the bundle's folder.
        precision: `auto`, or the one that must run.
        batch_size: tiles a batch; fixed batches make rows independent of everything else.
        workers: decode threads; None takes one a usable core.
        overwrite: whether a finished table may be replaced.
        require_parity: refuse to run without a certificate.
        expect_digest: hex SHA-256 that pins the bundle.
    """

    tiles: Path
    out: Path
    model: Path
    precision: RequestedPrecision = "auto"
    batch_size: int = DEFAULT_BATCH_SIZE
    workers: int | None = None
    overwrite: bool = False
    require_parity: bool = False
    expect_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a run's answers come from: the bundle, the certificate that covers them, and the proof at the start."""

    bundle_digest: str
    certificate: str | None
    replay_absdiff: float
    start_s: float


@dataclass(frozen=True, slots=True)
class RunReport:
    """What happened: the books (`ok + failed == found`), what ran, and where the time went."""

    found: int
    ignored: int
    ok: int
    failures: dict[str, int]
    backend: BackendInfo
    provenance: Provenance
    batch_size: int
    stream_s: float
    stages: tuple[StageStats, ...]

    schema: ClassVar[str] = "cervix/run/1"

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def bound_by(self) -> StageStats:
        """The stage whose threads had the largest share of their time busy."""
        return max(self.stages, key=lambda stage: stage.busy_s / stage.threads)

    @property
    def tiles_per_sec(self) -> float:
        return self.found / self.stream_s if self.stream_s else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "cervix_version": __version__,
            "bundle_digest": self.provenance.bundle_digest,
            "certificate": self.provenance.certificate,
            "replay_absdiff": self.provenance.replay_absdiff,
            "backend": {name: getattr(self.backend, name) for name in BackendInfo.__slots__},
            "batch_size": self.batch_size,
            "found": self.found,
            "ignored": self.ignored,
            "ok": self.ok,
            "failed": self.failed,
            "failures": self.failures,
            "start_s": round(self.provenance.start_s, 3),
            "stream_s": round(self.stream_s, 3),
            "tiles_per_sec": round(self.tiles_per_sec, 2),
            "stages": [stage.to_json() for stage in self.stages],
            "bound_by": self.bound_by.stage,
        }


@dataclass(slots=True)
class _Books:
    """Counts every outcome as it is written."""

    ok: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def count(self, result: BatchResult) -> None:
        failed = [outcome.kind for outcome in result.outcomes if isinstance(outcome, TileFailure)]
        self.failures.update(failed)
        self.ok += len(result.outcomes) - len(failed)

    def check(self, found: int) -> None:
        """The conservation law; a violation is this program's defect and leaves no table."""
        if self.ok + self.failures.total() != found:
            raise RuntimeError(f"{found} tiles found, but {self.ok} ok and {self.failures.total()} failed")


Progress = Callable[[int, int], None]


def no_progress(_done: int, _found: int) -> None:
    """For callers that show none."""


def predict_folder(config: BatchConfig, *, progress: Progress = no_progress) -> RunReport:
    """Predict every tile below `config.tiles` and write the table and its `.run.json`.

    Args:
        config: what is asked.
        progress: called with (tiles written, tiles found) after each batch.

    Raises:
        CervixError: see `errors.py`; then there is no new table at `config.out`.
    """
    started = time.perf_counter()
    _check_paths(config)
    bundle = Bundle.open(config.model, expect_digest=config.expect_digest)
    selection = select(bundle, precision=config.precision, require_parity=config.require_parity)
    with spool_beside(config.out) as spool:
        listing = discover(config.tiles, spool=spool)
        with open_backend(bundle, combination=selection.combination) as backend:
            provenance = Provenance(
                bundle_digest=bundle.digest,
                certificate=selection.certificate.path if selection.certificate else None,
                replay_absdiff=replay_golden(bundle, backend, batch_size=config.batch_size),
                start_s=time.perf_counter() - started,
            )
            return predict_listing(
                listing,
                contract=bundle.contract,
                backend=backend,
                config=config,
                provenance=provenance,
                progress=progress,
            )


def predict_listing(
    listing: Listing,
    *,
    contract: ModelContract,
    backend: Backend,
    config: BatchConfig,
    provenance: Provenance,
    progress: Progress = no_progress,
) -> RunReport:
    """Predict a listing with a loaded backend and commit the table; the part of a run that needs no bundle.

    Raises:
        CervixError: as `predict_folder`.
    """
    settings = StreamSettings(listing.root, contract, config.batch_size, config.workers or usable_cpus())
    stats, books = StreamStats(), _Books()
    started = time.perf_counter()
    with CsvTable(config.out, RowFormat(contract)) as table:
        batches = batches_of(listing, config.batch_size)
        results = stream(batches, backend=backend, settings=settings, stats=stats)
        clock = stats.clock("write")
        while (result := clock.next(results)) is not None:
            with clock.busy():
                table.write(result)
                books.count(result)
            clock.tiles += len(result.outcomes)
            progress(clock.tiles, listing.found)
        books.check(listing.found)
        report = RunReport(
            found=listing.found,
            ignored=listing.ignored,
            ok=books.ok,
            failures=dict(books.failures),
            backend=backend.info,
            provenance=provenance,
            batch_size=config.batch_size,
            stream_s=time.perf_counter() - started,
            stages=stats.stages(),
        )
        write_json(config.out.with_name(config.out.name + ".run.json"), report.to_json())
        table.commit()
    return report


@contextmanager
def spool_beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the table's own file system, for the listing."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder)
    except PermissionError as error:
        raise OutputError(f"cannot write in {out.parent}: {error.strerror}") from error


def _check_paths(config: BatchConfig) -> None:
    parent = config.out.parent
    if not config.tiles.is_dir():
        raise UsageError(f"{'not a folder' if config.tiles.exists() else 'no such folder'}: {config.tiles}")
    if not parent.is_dir():
        raise OutputError(f"no such folder for the table: {parent}")
    if config.out.is_dir():
        raise UsageError(f"{config.out} is a folder, expected a file name for the table")
    if config.out.exists() and not config.overwrite:
        raise OutputExistsError(f"{config.out} is there already: pass --overwrite to replace it")
    if parent.resolve().is_relative_to(config.tiles.resolve()):
        raise UsageError(f"the table would lie among the tiles: choose --out outside {config.tiles}")
