"""Whether a bench run is as fast as an earlier one on the same machine."""

from __future__ import annotations

from dataclasses import dataclass

from cervix_engine.bench.report import BenchReport
from cervix_engine.errors import UsageError


@dataclass(frozen=True, slots=True)
class RateChange:
    """One figure now and then, in tiles per second."""

    what: str
    now: float
    then: float

    @property
    def ratio(self) -> float:
        return self.now / self.then

    def __str__(self) -> str:
        return f"{self.what}: {self.now:.1f} tiles/s, {self.then:.1f} in the baseline ({self.ratio:.3f})"


def regressions(now: BenchReport, then: BenchReport | None, *, least: float) -> tuple[RateChange, ...]:
    """The guarded figures that fell below `least` of what they were; none where there is nothing to compare with.

    Raises:
        UsageError: as `compare`.
    """
    return tuple(item for item in compare(now, then) if item.ratio < least) if then else ()


def compare(now: BenchReport, then: BenchReport) -> tuple[RateChange, ...]:
    """Every guarded figure that both runs have.

    Raises:
        UsageError: the runs are not alike, so that a difference would say nothing of the code.
    """
    for what, value in _setting(now).items():
        earlier = _setting(then)[what]
        if value != earlier:
            raise UsageError(f"the baseline has {what} {earlier}, this run {value}: measure it anew under the same")
    rates = then.guarded()
    return tuple(RateChange(what, rate, rates[what]) for what, rate in now.guarded().items() if what in rates)


def _setting(report: BenchReport) -> dict[str, object]:
    return {
        "backend": report.backend.backend,
        "precision": report.backend.precision,
        "device": report.backend.device,
        "the CPU": report.conditions.software.get("cpu"),
        "cores": report.conditions.cores,
        "batch size": report.batch_size,
        "workers": report.workers,
        "tiles": (report.tiles, report.tiles_bytes),
    }
