"""A bench run as a picture: throughput against batch size, and what a tile costs in each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cervix_engine.bench.report import BenchReport
from cervix_engine.errors import UsageError
from cervix_engine.extras import require_installed
from cervix_engine.files import output_errors
from cervix_engine.privacy import keep_out_of_home


def check_plot(path: Path) -> None:
    """Refuse, before the measurements, what could not be drawn after them.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        UsageError: it knows no such format.
    """
    known = _figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise UsageError(f"cannot draw {path}: expected one of .{' .'.join(sorted(known))}")


def start_of(path: Path | None) -> bytes:
    """How a picture of this suffix begins; empty where that is not known."""
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml", ".eps": b"%!PS", ".ps": b"%!PS"}
    return starts.get(path.suffix.lower(), b"") if path else b""


def plot(report: BenchReport, path: Path) -> None:
    """Draw `report` into `path`, whose suffix says the format.

    Raises:
        BackendUnavailableError, UsageError: as `check_plot`.
        OutputError: the file cannot be written.
    """
    check_plot(path)
    figure = _figure()
    throughput, stages = figure.subplots(1, 2)
    _draw_throughput(throughput, report)
    _draw_stages(stages, report)
    figure.suptitle(f"{report.backend.backend} {report.backend.precision} on {report.conditions.software['cpu']}")
    with output_errors(f"cannot write {path}"):
        figure.savefig(path, dpi=150)


def _figure() -> Any:
    require_installed("bench", "matplotlib", work="--plot")
    keep_out_of_home()
    # Not `pyplot`: it would look for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(11, 4.2), layout="constrained")


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
