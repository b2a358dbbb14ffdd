"""What a run writes down of itself beside its table, from its start on: `preds.csv.run.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

from cervix_engine.backends import BackendInfo
from cervix_engine.drift.watch import DriftFinding
from cervix_engine.errors import OutputError
from cervix_engine.files import output_errors, write_json
from cervix_engine.machine import software
from cervix_engine.run.journal import RunIdentity
from cervix_engine.run.stream.stats import StageStats
from cervix_engine.table.names import escape_name, unescape_name
from cervix_engine.tiles.listing import FolderChanges

Status = Literal["running", "done", "interrupted", "failed"]


def utc_now(*, seconds_ago: float = 0.0) -> str:
    """The time in ISO 8601, UTC."""
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat(timespec="milliseconds")


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
        host: the machine's name.
        command: the command line; None where Python asked.
        started_at: when the run began, in ISO 8601, UTC.

    The last three are None in records of earlier versions.
    """

    bundle_digest: str
    certificate: str | None
    replay_absdiff: float
    start_s: float
    arguments: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=software)
    host: str | None = None
    command: str | None = None
    started_at: str | None = None


@dataclass(frozen=True, slots=True)
class TableChanges:
    """How a table differs from the finished one that it was made from, in tiles: `--update` found so many."""

    added: int
    changed: int
    removed: int

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A finished shard of which a table was merged.

    Attributes:
        shard: such as `3/8`.
        table_sha256: of its own table.
        found: its tiles.
        host: the machine that predicted it.
        seconds: from its start to its end; None where either is not known.
    """

    shard: str
    table_sha256: str
    found: int
    host: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What one machine of a cluster did for a run.

    Attributes:
        host: its name.
        workers: those that ended a block there.
        blocks, tiles: that they predicted.
    """

    host: str
    workers: int
    blocks: int
    tiles: int


@dataclass(frozen=True, slots=True)
class TableDigests:
    """What a finished table can be checked against.

    Attributes:
        table_sha256: of the whole file, whatever its format.
        header_check: of the CSV's first line, see `row_check`.
        rows_sha256: of the file of row checks.
        stamps_sha256: of the file of stamp checks; None in records of earlier versions, and of what was made of theirs.
    """

    table_sha256: str
    header_check: str
    rows_sha256: str
    stamps_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class DecidedTiles:
    """How many tiles of a table its operating point calls abnormal, and how many a person must review."""

    abnormal: int
    review: int


# What earlier versions do not write.
_UNWRITTEN: dict[str, Any] = {
    "ignored_by": {},
    "folder_changes": None,
    "ended_at": None,
    "table_changes": None,
    "shards": (),
    "nodes": (),
    "drift": None,
    "decided": None,
}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What happened: the books (`ok + failed == found` at the end), what ran, and where the time went.

    Attributes:
        status: `done` only once the table is in its place.
        reason: why a run that is not done ended, else None.
        identity: everything that a row can depend on.
        ignored_by: how many of the ignored for which of `discover.REASONS`; empty where that is not known.
        ended_at: when the run ended, however it did; None while it goes on, and in records of earlier versions.
        folder_changes: of a run that went on: how the folder differed from its listing.
        resumed: tiles that were done before this run, by an earlier one.
        flagged: predicted tiles with a flag of `quality.py`, where the run looked for any.
        table: what the table can be checked against; None until it is assembled.
        replaces: the record of the finished table that lies there until this run's takes its place.
        table_changes: of an update: how the table differs from the one before.
        shards: those that the table was merged of.
        nodes: of a run on a cluster: what each machine did of what this run computed itself.
        drift: what the tiles that the run predicted are like together; None where the bundle keeps nothing to
            compare with. Of a table made from a finished one, what was known of that where nothing newer is.
        decided: what the operating point made of all tiles of the table; None until it is assembled, where there is no
            operating point, and in records of earlier versions.
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
    replaces: RunRecord | None = None
    ignored_by: dict[str, int] = field(default_factory=dict)
    folder_changes: FolderChanges | None = None
    ended_at: str | None = None
    table_changes: TableChanges | None = None
    shards: tuple[ShardRecord, ...] = ()
    nodes: tuple[NodeRecord, ...] = ()
    drift: DriftFinding | None = None
    decided: DecidedTiles | None = None

    schema: ClassVar[str] = "cervix/run/2"

    @property
    def batch_size(self) -> int:
        return self.identity.batch_size

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def bound_by(self) -> StageStats:
        """The stage of a finished run that was busy the largest share of its time."""
        return max(self.stages, key=lambda stage: stage.busy_share)

    @property
    def tiles_per_sec(self) -> float:
        """Of the tiles that this run computed itself."""
        return (self.ok + self.failed - self.resumed) / self.stream_s if self.stream_s else 0.0

    @property
    def seconds(self) -> float | None:
        """From start to end; None where either is not known."""
        if not self.provenance.started_at or not self.ended_at:
            return None
        return (
            datetime.fromisoformat(self.ended_at) - datetime.fromisoformat(self.provenance.started_at)
        ).total_seconds()

    def done(self) -> RunRecord:
        """Of a table that is in its place: the record is this table's alone."""
        return replace(self, status="done", reason=None, replaces=None, ended_at=utc_now())

    def save(self, table: Path) -> None:
        """Write it beside `table`, atomically.

        Raises:
            OutputError: it cannot be written.
        """
        self.write(record_beside(table))

    def write(self, path: Path) -> None:
        """Write it to a file, atomically.

        Raises:
            OutputError: it cannot be written.
        """
        with output_errors("cannot write the run's record"):
            write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "cervix_version": self.provenance.software["cervix"],
            "status": self.status,
            "reason": self.reason,
            "ended_at": self.ended_at,
            "seconds": self.seconds,
            "provenance": asdict(self.provenance),
            "backend": asdict(self.backend),
            "identity": identity_to_json(self.identity),
            "batch_size": self.batch_size,
            "found": self.found,
            "ignored": self.ignored,
            "ignored_by": self.ignored_by,
            "folder_changes": asdict(self.folder_changes) if self.folder_changes is not None else None,
            "table_changes": asdict(self.table_changes) if self.table_changes is not None else None,
            "shards": [asdict(shard) for shard in self.shards],
            "nodes": [asdict(node) for node in self.nodes],
            "resumed": self.resumed,
            "ok": self.ok,
            "failed": self.failed,
            "failures": self.failures,
            "flagged": self.flagged,
            "drift": self.drift.to_json() if self.drift else None,
            "decided": asdict(self.decided) if self.decided else None,
            "stream_s": self.stream_s,
            "tiles_per_sec": self.tiles_per_sec,
            "stages": [asdict(stage) for stage in self.stages],
            "bound_by": self.bound_by.stage if self.stages else None,
            "table": asdict(self.table) if self.table else None,
            "replaces": self.replaces.to_json() if self.replaces else None,
        }

    @classmethod
    def load(cls, path: Path) -> RunRecord:
        """Read a run's `.run.json`, finished or not.

        Raises:
            OutputError: it is missing or malformed.
        """
        try:
            return cls._from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"cannot read {path}: {error}") from error

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> RunRecord:
        if data["schema"] != cls.schema:
            raise ValueError(f"schema {data['schema']!r}, expected {cls.schema!r}")
        data = {**_UNWRITTEN, **data}
        values = {item.name: data[item.name] for item in fields(cls)}
        values["provenance"] = Provenance(**data["provenance"])
        values["backend"] = BackendInfo(**data["backend"])
        values["identity"] = _identity_from_json(data["identity"])
        values["table"] = TableDigests(**data["table"]) if data["table"] else None
        values["folder_changes"] = FolderChanges(**data["folder_changes"]) if data["folder_changes"] else None
        values["table_changes"] = TableChanges(**data["table_changes"]) if data["table_changes"] else None
        values["shards"] = tuple(ShardRecord(**shard) for shard in data["shards"])
        values["nodes"] = tuple(NodeRecord(**node) for node in data["nodes"])
        values["stages"] = tuple(StageStats(**stage) for stage in data["stages"])
        values["drift"] = DriftFinding.from_json(data["drift"]) if data["drift"] else None
        values["decided"] = DecidedTiles(**data["decided"]) if data["decided"] else None
        values["replaces"] = cls._from_json(data["replaces"]) if data["replaces"] else None
        return cls(**values)


def identity_to_json(identity: RunIdentity) -> dict[str, Any]:
    """As records and manifests have it."""
    # The names of a folder and of a file of places may hold bytes that are not UTF-8.
    names = {name: value and escape_name(value) for name, value in _names(asdict(identity)).items()}
    return {**asdict(identity), **names, "columns": list(identity.columns)}


def _identity_from_json(data: dict[str, Any]) -> RunIdentity:
    return RunIdentity.from_json(
        {**data, **{name: value and unescape_name(value) for name, value in _names(data).items()}}
    )


def _names(identity: dict[str, Any]) -> dict[str, str | None]:
    return {name: identity.get(name) for name in ("root", "coords", "slide")}


def record_beside(table: Path) -> Path:
    """Where a table's record lies."""
    return table.with_name(f"{table.name}.run.json")
