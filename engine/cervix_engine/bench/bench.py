"""One bench run: from options to a report."""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cervix_engine.backends.device import ANY, Device
from cervix_engine.backends.selection import RequestedPrecision
from cervix_engine.bench.measure import Gate, Meter
from cervix_engine.bench.report import BenchReport, Conditions
from cervix_engine.bench.setup import BenchSetup, copy_golden, usable_tiles
from cervix_engine.bench.stages import end_to_end, model_sweep, stage_rates
from cervix_engine.bench.steps import PipelineSteps
from cervix_engine.bench.verdict import judge
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import UsageError
from cervix_engine.files import scratch_folder
from cervix_engine.machine import software, usable_cpus
from cervix_engine.run.session import SessionRequest, open_session
from cervix_engine.run.sizes import WORKERS
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.sources.open import open_source
from cervix_engine.words import counted

# The model alone is measured up to the first of these that does not fit; a CPU's rate no longer grows beyond 64.
SWEPT_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
SWEPT_ON_GPUS = (*SWEPT_BATCH_SIZES, 128, 256, 512)
DEFAULT_TILES = 256
# So many rounds' time takes a run from files to table: its fixed costs, a few fsyncs, must not count as its rate.
RUN_ROUNDS = 4

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What is asked of a bench run.

    Attributes:
        model: the bundle's folder.
        tiles: a folder of tiles; None takes the bundle's golden tiles.
        precision: `auto`, or the one that must run.
        backend: the runtime that must run it; None takes what `precision` chooses.
        device: where it may compute.
        batch_size: of the run from files to table; None takes an engine's usual one, else 32.
        workers: decode workers; None takes one a usable core.
        count: how many tiles of the folder are used.
        batch_sizes: at which the model is measured alone, 1 always among them; None takes powers of 2 that fit.
        gate: when a figure is stable.
        scratch: where the measured table is written; None takes the system's folder for temporary files.
    """

    model: Path
    tiles: Path | None = None
    precision: RequestedPrecision = "auto"
    backend: str | None = None
    device: Device = ANY
    batch_size: int | None = None
    workers: int | None = None
    count: int = DEFAULT_TILES
    batch_sizes: tuple[int, ...] | None = None
    gate: Gate = field(default_factory=Gate)
    scratch: Path | None = None


def bench(config: BenchConfig, *, say: Say = lambda _: None) -> BenchReport:
    """Measure a bundle on this machine.

    Args:
        config: what is asked.
        say: called with what is measured next.

    Raises:
        CervixError: see `errors.py`.
    """
    bundle = Bundle.open(config.model)
    request = SessionRequest(
        bundle,
        precision=config.precision,
        backend=config.backend,
        device=config.device,
        batch_size=config.batch_size,
        workers=config.workers or min(usable_cpus(), WORKERS[-1]),
    )
    with _scratch_folder(config.scratch) as name:
        folder = Path(name)

        def list_tiles() -> Listing:
            source = open_source(config.tiles or copy_golden(bundle, folder / "tiles"), follow_links=True)
            return discover(source, spool=folder)

        with open_session(request, list_tiles=list_tiles) as session:
            tiles = usable_tiles(session.listing, contract=bundle.contract, count=config.count)
            setup = BenchSetup.of(session, tiles, out=folder / "preds.csv")
            meter = Meter(config.gate)
            sizes = config.batch_sizes or (SWEPT_ON_GPUS if session.backend.info.gpu else SWEPT_BATCH_SIZES)
            return measure(setup, PipelineSteps.real(setup), batch_sizes=sizes, meter=meter, say=say)


def measure(
    setup: BenchSetup, steps: PipelineSteps, *, batch_sizes: tuple[int, ...], meter: Meter, say: Say = lambda _: None
) -> BenchReport:
    """All figures of a setup, and the verdict."""
    clock_before, load_before = clock_mhz(), os.getloadavg()[0]
    say(f"each stage alone, {counted(len(setup.tiles), 'tile')}")
    stages = stage_rates(setup, steps, meter=meter)
    say("the model alone, by batch size")
    sweep = model_sweep(steps.backend, setup, sorted({1, *batch_sizes}), meter=meter)
    say("end to end, from files to table")
    slowest = min(stage.rate.tiles_per_sec for stage in stages)
    setup = replace(setup, passes=max(1, round(RUN_ROUNDS * meter.gate.round_s * slowest / len(setup.tiles))))
    whole = end_to_end(setup, steps, meter=meter)
    say("the slowest stage made free")
    verdict = judge(setup, steps, stages=stages, whole=whole, meter=meter)
    return BenchReport(
        conditions=Conditions(
            software=software(),
            cores=usable_cpus(),
            clock_mhz=(clock_before, clock_mhz()),
            load=(load_before, os.getloadavg()[0]),
        ),
        backend=steps.backend.info,
        tiles=len(setup.tiles),
        tiles_bytes=sum(tile.stamp.size_bytes for tile in setup.tiles if tile.stamp),
        batch_size=setup.batch_size,
        workers=setup.workers,
        gate=meter.gate,
        stages=stages,
        sweep=sweep,
        end_to_end=whole,
        verdict=verdict,
    )


def clock_mhz() -> float | None:
    """The mean clock of the cores now, in MHz, as Linux tells it; None where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    clocks = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return statistics.fmean(clocks) if clocks else None


def _scratch_folder(parent: Path | None) -> AbstractContextManager[str | Path]:
    if parent is None:
        return scratch_folder()
    try:
        return tempfile.TemporaryDirectory(prefix="cervix-bench-", dir=parent)
    except OSError as error:
        raise UsageError(f"cannot write in {parent}: {error.strerror}") from error
