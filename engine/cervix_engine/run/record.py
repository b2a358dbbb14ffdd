"""What a run writes down of itself beside its table, from its start on: `preds.csv.run.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from cervix_engine.backends import BackendInfo
from cervix_engine.errors import CervixError, OutputError
from cervix_engine.files import sha256_file, write_json
from cervix_engine.machine import software
from cervix_engine.run.journal import RunIdentity, output_errors
from cervix_engine.run.partial import PartialRun, TableDigests
from cervix_engine.run.stream.stats import StageStats
from cervix_engine.table.names import escape_name, unescape_name

Status = Literal["running", "done", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a run's answers come from: the bundle, the certificate that covers them, and the proof at the start.

    Attributes:
        bundle_digest: hex SHA-256 of the bundle.
        certificate: its path in the bundle, or None where none covers the run.
        replay_absdiff: largest difference from Keras's probabilities on the golden tiles replayed at the start.
        start_s: seconds until the first tile could be predicted.
        arguments: what was asked, by option.
        software: versions by name, the system and the CPU.
    """

    bundle_digest: str
    certificate: str | None
    replay_absdiff: float
    start_s: float
    arguments: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=software)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What happened: the books (`ok + failed == found` at the end), what ran, and where the time went.

    Attributes:
        status: `done` only once the table is in its place.
        reason: why a run that is not done ended, else None.
        identity: everything that a row can depend on.
        resumed: tiles that were done before this run, by an earlier one.
        flagged: predicted tiles with a flag of `quality.py`, where the run looked for any.
        table: what the table can be checked against; None until it is assembled.
        replaces: the report of the finished table that lies there until this run's takes its place.
    """

    found: int
    ignored: int
    resumed: int
    backend: BackendInfo
    provenance: Provenance
    identity: RunIdentity
    ok: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    flagged: int = 0
    stream_s: float = 0.0
    stages: tuple[StageStats, ...] = ()
    table: TableDigests | None = None
    status: Status = "running"
    reason: str | None = None
    replaces: RunReport | None = None

    schema: ClassVar[str] = "cervix/run/2"

    @property
    def batch_size(self) -> int:
        return self.identity.batch_size

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def bound_by(self) -> StageStats:
        """The stage of a finished run whose threads had the largest share of their time busy."""
        return max(self.stages, key=lambda stage: stage.busy_s / stage.threads)

    @property
    def tiles_per_sec(self) -> float:
        """Of the tiles that this run computed itself."""
        return (self.ok + self.failed - self.resumed) / self.stream_s if self.stream_s else 0.0

    def settled(self) -> RunReport:
        """Of a table that is in its place: the report is this table's alone."""
        return replace(self, status="done", reason=None, replaces=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "cervix_version": self.provenance.software["cervix"],
            "status": self.status,
            "reason": self.reason,
            "provenance": asdict(self.provenance),
            "backend": asdict(self.backend),
            "identity": _identity_to_json(self.identity),
            "batch_size": self.batch_size,
            "found": self.found,
            "ignored": self.ignored,
            "resumed": self.resumed,
            "ok": self.ok,
            "failed": self.failed,
            "failures": self.failures,
            "flagged": self.flagged,
            "stream_s": self.stream_s,
            "tiles_per_sec": self.tiles_per_sec,
            "stages": [asdict(stage) for stage in self.stages],
            "bound_by": self.bound_by.stage if self.stages else None,
            "table": asdict(self.table) if self.table else None,
            "replaces": self.replaces.to_json() if self.replaces else None,
        }

    @classmethod
    def load(cls, path: Path) -> RunReport:
        """Read a run's `.run.json`, finished or not.

        Raises:
            OutputError: it is missing or malformed.
        """
        try:
            return cls._from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"cannot read {path}: {error}") from error

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> RunReport:
        if data["schema"] != cls.schema:
            raise ValueError(f"schema {data['schema']!r}, expected {cls.schema!r}")
        values = {item.name: data[item.name] for item in fields(cls)}
        values["provenance"] = Provenance(**data["provenance"])
        values["backend"] = BackendInfo(**data["backend"])
        values["identity"] = _identity_from_json(data["identity"])
        values["table"] = TableDigests(**data["table"]) if data["table"] else None
        values["stages"] = tuple(StageStats(**stage) for stage in data["stages"])
        values["replaces"] = cls._from_json(data["replaces"]) if data["replaces"] else None
        return cls(**values)


def _identity_to_json(identity: RunIdentity) -> dict[str, Any]:
    # The names of a folder and of a file of places may hold bytes that are not UTF-8.
    names = {name: value and escape_name(value) for name, value in _names(asdict(identity)).items()}
    return {**asdict(identity), **names, "columns": list(identity.columns)}


def _identity_from_json(data: dict[str, Any]) -> RunIdentity:
    return RunIdentity.from_json(
        {**data, **{name: value and unescape_name(value) for name, value in _names(data).items()}}
    )


def _names(identity: dict[str, Any]) -> dict[str, str | None]:
    return {"root": identity["root"], "coords": identity["coords"]}


def report_beside(table: Path) -> Path:
    """Where a table's report lies."""
    return table.with_name(f"{table.name}.run.json")


def report_of(table: Path) -> RunReport:
    """The report of the table that lies at `table`, which a run that is to replace it may have in its keeping.

    Raises:
        OutputError: there is none, or the run that it speaks of has made no table.
    """
    path = report_beside(table)
    report = RunReport.load(path)
    if report.replaces is None:
        if report.table is None:
            raise OutputError(f"{path} speaks of a run that made no table: {report.status}")
        return report
    if report.table is None:
        return report.replaces
    # The new table is assembled, and replaces the old one at some instant about now.
    with output_errors(f"cannot read {table}"):
        return report if sha256_file(table) == report.table.table_sha256 else report.replaces


def replaced_report(table: Path) -> RunReport | None:
    """The report of a table that a new run is to replace; None where there is no table, or none of ours."""
    with output_errors(f"cannot look at {table}"):
        exists = table.exists()
    try:
        return report_of(table) if exists else None
    except OutputError:
        return None


class ReportFile:
    """A run's report on disk while the run goes on; a kill leaves it at `running`.

    A finished table that is to be replaced keeps its own report, inside the new one, until the rename.

    Args:
        path: where it goes.
        report: as the run starts.
        partial: the run; its books are the report's.
        kept: rows of a finished table that are the new one's too.
    """

    def __init__(self, path: Path, report: RunReport, *, partial: PartialRun, kept: int = 0) -> None:
        self._path = path
        self._report = report
        self._partial = partial
        self._kept = kept
        self.update()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note why the block was left where it fails, if that can be written."""
        try:
            yield
        except BaseException as error:
            status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            # What ended the run may keep this from being written too; it alone is what the caller must see.
            with suppress(OutputError):
                self.update(status=status, reason=_reason(error))
            raise

    def update(self, **changes: Any) -> RunReport:
        """Write the report with what the run has done so far, and some of its fields changed.

        Raises:
            OutputError: it cannot be written.
        """
        failures = dict(sorted(self._partial.failures.items()))
        # A failed tile has no flags, so a retry keeps all of the table that it mends.
        kept = self._report.replaces.flagged if self._report.replaces and self._report.identity.retry_of else 0
        books = replace(
            self._report,
            ok=self._kept + self._partial.ok,
            failures=failures,
            flagged=kept + self._partial.flagged,
        )
        return self._write(replace(books, **changes))

    def settle(self) -> RunReport:
        """Say that the table is in its place.

        Raises:
            OutputError: as `update`.
        """
        return self._write(self._report.settled())

    def _write(self, report: RunReport) -> RunReport:
        _write(self._path, report)
        self._report = report
        return report


def settle_report(path: Path) -> None:
    """Finish the report of a run that was stopped between its table's rename and its own end."""
    with output_errors(f"cannot look at {path}"):
        exists = path.exists()
    if exists and (report := RunReport.load(path)).status != "done":
        _write(path, report.settled())


def _write(path: Path, report: RunReport) -> None:
    with output_errors("cannot write the run's report"):
        write_json(path, report.to_json())


def _reason(error: BaseException) -> str:
    text = str(error) if isinstance(error, CervixError) else f"{type(error).__name__}: {error}".rstrip(": ")
    # A name in it may hold bytes that are not UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()
