"""What a run writes down of itself beside its table: `preds.csv.run.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from cervix_engine import __version__
from cervix_engine.backends import BackendInfo
from cervix_engine.errors import OutputError
from cervix_engine.output.partial import TableDigests
from cervix_engine.pipeline.stats import StageStats


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
    resumed: int
    ok: int
    failures: dict[str, int]
    backend: BackendInfo
    provenance: Provenance
    batch_size: int
    stream_s: float
    stages: tuple[StageStats, ...]
    table: TableDigests

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
        """Of the tiles that this run computed itself."""
        return (self.found - self.resumed) / self.stream_s if self.stream_s else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "cervix_version": __version__,
            "provenance": asdict(self.provenance),
            "backend": asdict(self.backend),
            "batch_size": self.batch_size,
            "found": self.found,
            "ignored": self.ignored,
            "resumed": self.resumed,
            "ok": self.ok,
            "failed": self.failed,
            "failures": self.failures,
            "stream_s": self.stream_s,
            "tiles_per_sec": self.tiles_per_sec,
            "stages": [asdict(stage) for stage in self.stages],
            "bound_by": self.bound_by.stage,
            "table": asdict(self.table),
        }

    @classmethod
    def load(cls, path: Path) -> RunReport:
        """Read a finished run's `.run.json`.

        Raises:
            OutputError: it is missing or malformed.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] != cls.schema:
                raise ValueError(f"schema {data['schema']!r}, expected {cls.schema!r}")
            values = {item.name: data[item.name] for item in fields(cls)}
            values["provenance"] = Provenance(**data["provenance"])
            values["backend"] = BackendInfo(**data["backend"])
            values["table"] = TableDigests(**data["table"])
            values["stages"] = tuple(StageStats(**stage) for stage in data["stages"])
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"cannot read {path}: {error}") from error
