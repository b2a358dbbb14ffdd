"""What `cervix-bench` found, as one JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from cervix_engine.backends import BackendInfo
from cervix_engine.bench.measure import Gate, Latency, Rate
from cervix_engine.bench.stages import BatchRate, StageRate
from cervix_engine.bench.verdict import Capacities, FreedRun, Verdict
from cervix_engine.errors import UsageError
from cervix_engine.version import __version__


@dataclass(frozen=True, slots=True)
class Conditions:
    """Where figures come from, without which they mean nothing.

    Attributes:
        software: versions by name, the system and the CPU.
        cores: that this process may use.
        clock_mhz: the cores' mean clock before and after; None where the system does not tell.
        load: how many programs wanted a core in the minute before and after.
    """

    software: dict[str, str]
    cores: int
    clock_mhz: tuple[float | None, float | None]
    load: tuple[float, float]


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All figures of one bench run.

    Attributes:
        conditions: where they come from.
        backend: what really ran.
        tiles: how many were used.
        tiles_bytes: the size of their files together.
        batch_size, workers: of the run from files to table.
        gate: by which rounds were stable.
        stages: each alone.
        sweep: the model alone, by batch size; the first is batch 1.
        end_to_end: from files to table.
        verdict: what bounds the latter.
    """

    conditions: Conditions
    backend: BackendInfo
    tiles: int
    tiles_bytes: int
    batch_size: int
    workers: int
    gate: Gate
    stages: tuple[StageRate, ...]
    sweep: tuple[BatchRate, ...]
    end_to_end: Rate
    verdict: Verdict

    schema: ClassVar[str] = "cervix/bench/1"

    def unstable(self) -> list[str]:
        """The guarded figures whose rounds did not agree."""
        return [name for name, rate in self._rates() if not rate.stable]

    def guarded(self) -> dict[str, float]:
        """The figures that a baseline is compared by, each the better the larger."""
        return {name: rate.tiles_per_sec for name, rate in self._rates()}

    def _rates(self) -> Iterator[tuple[str, Rate]]:
        yield "end to end", self.end_to_end
        for item in self.sweep:
            yield f"model, batch {item.batch_size}", item.rate

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "cervix_version": __version__,
            "conditions": asdict(self.conditions),
            "backend": asdict(self.backend),
            "tiles": self.tiles,
            "tiles_bytes": self.tiles_bytes,
            "batch_size": self.batch_size,
            "workers": self.workers,
            "gate": asdict(self.gate),
            "stages": [asdict(stage) for stage in self.stages],
            "model": [asdict(item) for item in self.sweep],
            "end_to_end": asdict(self.end_to_end),
            "verdict": {**asdict(self.verdict), "sentence": str(self.verdict)},
            "unstable": self.unstable(),
        }

    @classmethod
    def load(cls, path: Path) -> BenchReport:
        """Read an earlier bench run's JSON.

        Raises:
            UsageError: it is missing, or not one.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] != cls.schema:
                raise ValueError(f"schema {data['schema']!r}, expected {cls.schema!r}")
            return cls(
                conditions=_conditions(data["conditions"]),
                backend=BackendInfo(**data["backend"]),
                tiles=data["tiles"],
                tiles_bytes=data["tiles_bytes"],
                batch_size=data["batch_size"],
                workers=data["workers"],
                gate=Gate(**data["gate"]),
                stages=tuple(StageRate(**{**item, "rate": Rate(**item["rate"])}) for item in data["stages"]),
                sweep=tuple(map(_batch_rate, data["model"])),
                end_to_end=Rate(**data["end_to_end"]),
                verdict=_verdict(data["verdict"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"cannot read the baseline {path}: {error}") from error


def _conditions(data: dict[str, Any]) -> Conditions:
    return Conditions(data["software"], data["cores"], tuple(data["clock_mhz"]), tuple(data["load"]))


def _batch_rate(data: dict[str, Any]) -> BatchRate:
    return BatchRate(data["batch_size"], Rate(**data["rate"]), Latency(**data["latency"]))


def _verdict(data: dict[str, Any]) -> Verdict:
    return Verdict(
        data["stage"],
        data["confirmed"],
        data["end_to_end_tiles_per_sec"],
        Capacities(**data["capacities"]),
        tuple(FreedRun(item["stage"], Rate(**item["rate"])) for item in data["checks"]),
    )
