"""A bench run as a picture: throughput against batch size, and what a tile costs in each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cervix_engine.bench.report import BenchReport
from cervix_engine.errors import OutputError, UsageError
from cervix_engine.privacy import keep_out_of_home


def plot(report: BenchReport, path: Path) -> None:
    """Draw `report` into `path`, whose suffix says the format.

    Raises:
        UsageError: matplotlib is not installed or knows no such format.
        OutputError: the file cannot be written.
    """
    keep_out_of_home()
    try:
        # Not `pyplot`: it would look for a display.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'cervix[bench]'") from error
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    throughput, stages = figure.subplots(1, 2)
    _draw_throughput(throughput, report)
    _draw_stages(stages, report)
    figure.suptitle(f"{report.backend.backend} {report.backend.precision} on {report.conditions.software['cpu']}")
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise UsageError(f"cannot draw {path}: {error}") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _draw_throughput(axes: Any, report: BenchReport) -> None:
    sizes = [item.batch_size for item in report.sweep]
    rates = [item.rate for item in report.sweep]
    axes.fill_between(sizes, [rate.low for rate in rates], [rate.high for rate in rates], alpha=0.25)
    axes.plot(sizes, [rate.tiles_per_sec for rate in rates], marker="o", label="model alone")
    axes.axhline(report.end_to_end.tiles_per_sec, color="tab:red", linestyle="--", label="end to end")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set(xlabel="batch size (tiles)", ylabel="tiles/s", title="Throughput")
    axes.legend()


def _draw_stages(axes: Any, report: BenchReport) -> None:
    names = [f"{stage.stage} ({stage.threads})" for stage in report.stages]
    axes.barh(names, [1e6 / stage.rate.tiles_per_sec for stage in report.stages])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set(xlabel="µs a tile, all threads of the stage together", title="Each stage alone (threads)")
