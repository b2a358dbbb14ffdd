"""What bounds a run, and the proof: a run in which that stage is made free.

Reading and decoding are one worker's work, one after the other, so together they sustain 1/(1/read + 1/decode). The
slowest of workers, model and writer bounds the run; of the workers' two steps, the one that takes longer. Such a
prediction is worth nothing until it is tried: the named stage is replaced by one that costs nothing, and the run must
become faster by more than two runs differ. Where it does not, the next slowest is tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cervix_engine.bench.measure import Meter, Rate
from cervix_engine.bench.setup import BenchSetup
from cervix_engine.bench.stages import StageRate, end_to_end
from cervix_engine.bench.steps import Bound, PipelineSteps
from cervix_engine.words import agreeing, counted


@dataclass(frozen=True, slots=True)
class Capacities:
    """Tiles per second that each part of a run sustains alone; `workers` threads read and decode."""

    workers: int
    read: float
    decode: float
    infer: float
    write: float

    @classmethod
    def of(cls, stages: Iterable[StageRate], *, workers: int) -> Capacities:
        rates = {stage.stage: stage.rate.tiles_per_sec for stage in stages}
        return cls(workers, rates["read"], rates["decode"], rates["infer"], rates["write"])

    @property
    def prepare(self) -> float:
        """Of the workers, who read and decode."""
        return 1 / (1 / self.read + 1 / self.decode)

    @property
    def workers_to_saturate(self) -> int:
        """Workers that would keep up with the slower of model and writer, if each did as much as those here do."""
        return math.ceil(self.workers * min(self.infer, self.write) / self.prepare)

    def sustained(self, stage: Bound) -> float:
        """Tiles/s of the threads that do `stage`."""
        return {"read": self.prepare, "decode": self.prepare, "infer": self.infer, "write": self.write}[stage]

    def slowest_first(self) -> list[Bound]:
        """The stages in the order in which they are suspected."""
        alone: Mapping[Bound, float] = {
            "read": self.read,
            "decode": self.decode,
            "infer": self.infer,
            "write": self.write,
        }
        return sorted(alone, key=lambda stage: (self.sustained(stage), alone[stage]))


@dataclass(frozen=True, slots=True)
class FreedRun:
    """A run from files to table in which one stage costs nothing."""

    stage: Bound
    rate: Rate


@dataclass(frozen=True, slots=True)
class Verdict:
    """What bounds a run.

    Attributes:
        stage: the stage; where no check confirmed one, the first suspect.
        confirmed: whether the run became faster, by more than the gate's tolerance, once the stage was free.
        end_to_end_tiles_per_sec: of the run as it is.
        capacities: of its steps.
        checks: the runs that were tried, in order; the last one decided.
    """

    stage: Bound
    confirmed: bool
    end_to_end_tiles_per_sec: float
    capacities: Capacities
    checks: tuple[FreedRun, ...]

    def __str__(self) -> str:
        freed = next(check.rate.tiles_per_sec for check in self.checks if check.stage == self.stage)
        now = self.end_to_end_tiles_per_sec
        check = f"with that made free, the run goes from {_number(now)} to {_number(freed)} tiles/s"
        if not self.confirmed:
            return f"bound by no stage alone: suspected was {self.stage}, but {check}"
        return f"bound by {_NAMES[self.stage]}: {self._what_lifts_it()}; {check}"

    def _what_lifts_it(self) -> str:
        able = self.capacities
        model, prepare, write = _number(able.infer), _number(able.prepare), _number(able.write)
        workers = counted(able.workers, "worker")
        if self.stage == "infer":
            return f"it sustains {model} tiles/s, {workers} could prepare {prepare}"
        if self.stage == "write":
            return f"it sustains {write} tiles/s, the model could do {model}"
        behind = f"the model could do {model}" if able.infer <= able.write else f"writing could do {write}"
        wanted = able.workers_to_saturate
        lift = f"; {wanted} workers would saturate it" if wanted > able.workers else ""
        return f"{workers} {agreeing(able.workers, 'sustains', 'sustain')} {prepare} tiles/s, {behind}{lift}"


_NAMES: Mapping[Bound, str] = {"read": "reading", "decode": "decode", "infer": "the model", "write": "writing"}


def judge(
    setup: BenchSetup, steps: PipelineSteps, *, stages: Iterable[StageRate], whole: Rate, meter: Meter
) -> Verdict:
    """Name what bounds a run, and prove it.

    Args:
        setup, steps: what is measured.
        stages: each stage alone.
        whole: the rate from files to table.
        meter: for the runs that check.
    """
    capacities = Capacities.of(stages, workers=setup.workers)
    needed = whole.tiles_per_sec * (1 + meter.gate.tolerance)
    checks: list[FreedRun] = []
    for check in _freed_runs(setup, steps, capacities.slowest_first(), meter):
        checks.append(check)
        if check.rate.tiles_per_sec > needed:
            return Verdict(check.stage, True, whole.tiles_per_sec, capacities, tuple(checks))
    return Verdict(checks[0].stage, False, whole.tiles_per_sec, capacities, tuple(checks))


def _freed_runs(setup: BenchSetup, steps: PipelineSteps, suspects: Iterable[Bound], meter: Meter) -> Iterator[FreedRun]:
    for stage in suspects:
        yield FreedRun(stage, end_to_end(setup, steps.without(stage, setup), meter=meter))


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
