"""`cervix-bench`: how fast a bundle runs here, and what bounds it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cervix_engine.backends.register import runtime_names
from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, device_option, model_option, option, precision_option
from cervix_engine.run.sizes import BATCH_SIZES, WORKERS
from cervix_engine.words import counted

if TYPE_CHECKING:
    from cervix_engine.bench.bench import BenchConfig
    from cervix_engine.bench.measure import Rate
    from cervix_engine.bench.report import BenchReport

REGRESSED = 6


@click.command(cls=CervixCommand)
@click.argument("tiles", type=FILE, required=False)
@model_option("measure")
@precision_option
@device_option
@option("--backend", type=click.Choice(runtime_names()), help="Runtime. [default: as --precision chooses]")
@option(
    "-b",
    "--batch-size",
    type=click.IntRange(BATCH_SIZES[0], BATCH_SIZES[-1]),
    help="Batch size. [default: an engine's usual one, else 32]",
)
@option("-j", "--workers", type=click.IntRange(WORKERS[0], WORKERS[-1]), help="Decode processes. [default: one a core]")
@option("--count", type=click.IntRange(1), default=256, help="Maximum number of tiles.")
@option(
    "--sweep",
    metavar="SIZES",
    help="Batch sizes for the model alone, such as 8,32; 1 is always among them. [default: 1 to 64, on a GPU to 512]",
)
@option(
    "--stable-within",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    help="Share by which the last 5 rounds of a figure may differ.",
)
@option("--max-rounds", type=click.IntRange(5), default=20, help="Maximum number of rounds of a figure.")
@option("--round-seconds", type=click.FloatRange(0), default=0.5, help="Minimum seconds of a round.")
@option("--scratch", type=FILE, help="Folder for the measured table. [default: $TMPDIR]")
@option("--out", type=FILE, help="JSON file for the report, a baseline for later runs.")
@option("--plot", "picture", type=FILE, help="Picture of the report, such as bench.png.")
@option("--baseline", type=FILE, help="Earlier report: exit code 6 if this run is slower, and a second one too.")
@option(
    "--fail-below",
    type=click.FloatRange(0, min_open=True),
    default=0.95,
    help="Share of the baseline below which a figure is slower.",
)
@option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
def main(
    model: Path | None,
    device: str,
    sweep: str | None,
    stable_within: float,
    max_rounds: int,
    round_seconds: float,
    out: Path | None,
    picture: Path | None,
    baseline: Path | None,
    fail_below: float,
    as_json: bool,
    **asked: Any,
) -> int:
    """Measure a bundle here: each stage alone, the model by batch size, all of it from files; and what bounds it.

    TILES is a folder; without it the bundle's golden tiles are taken. Exit codes: 0 done, 1 failed, 2 wrong usage,
    6 slower than the baseline, or too unstable to say.
    """
    from cervix_engine.backends.device import Device
    from cervix_engine.bench.bench import BenchConfig
    from cervix_engine.bench.measure import Gate
    from cervix_engine.bundle.bundle import default_bundle

    root = model or default_bundle()
    _prepare(out, picture, inputs=(asked["tiles"], root), needs_scratch=asked["scratch"] is None or picture is not None)
    config = BenchConfig(
        model=root,
        device=Device.parse(device),
        batch_sizes=_sizes(sweep) if sweep else None,
        gate=Gate(tolerance=stable_within, max_rounds=max_rounds, round_s=round_seconds),
        **asked,
    )
    report, slower = _measured(config, baseline, fail_below)
    _publish(report, out=out, picture=picture, as_json=as_json)
    return REGRESSED if slower or (report.unstable() and baseline) else 0


def _prepare(out: Path | None, picture: Path | None, *, inputs: tuple[Path | None, ...], needs_scratch: bool) -> None:
    from cervix_engine.bench.plot import check_plot, start_of
    from cervix_engine.bench.report import BenchReport
    from cervix_engine.cli.shared.surroundings import prepare_outputs
    from cervix_engine.outputs.places import json_start

    written = (out, json_start(BenchReport.schema)), (picture, start_of(picture))
    prepare_outputs(*written, inputs=inputs, needs_scratch=needs_scratch)
    if picture:
        check_plot(picture)


def _measured(config: BenchConfig, baseline: Path | None, fail_below: float) -> tuple[BenchReport, bool]:
    """What was measured, and whether some of it is slower than the baseline, which is said."""
    from cervix_engine.bench.baseline import regressions
    from cervix_engine.bench.bench import bench
    from cervix_engine.bench.report import BenchReport

    # Tests hand in measurements of their own.
    measure = click.get_current_context().obj or bench
    earlier = BenchReport.load(baseline) if baseline else None
    report = measure(config, say=_say)
    slower = regressions(report, earlier, least=fail_below)
    if slower:
        # A machine that others share is slower for a minute now and then. What is slower twice is slower.
        _say("once more, since some of it is slower than the baseline")
        report = measure(config, say=_say)
        seen = {item.what for item in slower}
        slower = tuple(item for item in regressions(report, earlier, least=fail_below) if item.what in seen)
    for item in slower:
        click.echo(f"regressed: {item}", err=True)
    return report, bool(slower)


def _say(what: str) -> None:
    click.echo(f"measuring {what}", err=True)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = (0,)
    if not all(1 <= size <= 4096 for size in sizes):
        raise click.BadParameter(f"{text!r}, expected sizes from 1 to 4096 such as 1,8,32.", param_hint="'--sweep'")
    return sizes


def _publish(report: BenchReport, *, out: Path | None, picture: Path | None, as_json: bool) -> None:
    from cervix_engine.bench.plot import plot
    from cervix_engine.files import output_errors, write_json

    if out:
        with output_errors(f"cannot write {out}"):
            write_json(out, report.to_json())
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        for line in _lines(report):
            click.echo(line)
    if picture:
        plot(report, picture)
    for name in report.unstable():
        click.echo(f"unstable: {name}: rounds differ by more than {report.gate.tolerance:.0%}", err=True)


def _lines(report: BenchReport) -> Iterator[str]:
    backend, conditions = report.backend, report.conditions
    yield f"{backend.backend} {backend.version} {backend.precision} on {conditions.software['cpu']}"
    yield (
        f"{counted(conditions.cores, 'core')}, {counted(report.workers, 'worker')}, batch {report.batch_size}, "
        f"{counted(report.tiles, 'tile')}, "
        f"load {conditions.load[0]:.1f} to {conditions.load[1]:.1f}"
    )
    yield "each stage alone (threads)"
    yield from (f"  {f'{item.stage} ({item.threads})':<14} {_shown(item.rate)}" for item in report.stages)
    yield "the model alone"
    for item in report.sweep:
        latency = f"p50 {item.latency.p50_ms:.2f} ms, p99 {item.latency.p99_ms:.2f} ms"
        yield f"  {f'batch {item.batch_size}':<14} {_shown(item.rate)}   {latency}"
    yield f"{'end to end':<16} {_shown(report.end_to_end)}"
    yield str(report.verdict)


def _shown(rate: Rate) -> str:
    unstable = "" if rate.stable else f"   unstable in {rate.rounds} rounds"
    return f"{rate.tiles_per_sec:12,.1f} tiles/s  ({rate.low:,.1f} to {rate.high:,.1f}){unstable}"
