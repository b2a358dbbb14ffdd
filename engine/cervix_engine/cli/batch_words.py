"""What `cervix-batch` says of a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cervix_engine.run_report import RunReport

# From this share of flagged tiles on, the input rather than a tile is worth a look.
MANY_FLAGGED = 0.2


def summary_lines(report: RunReport, out: Path, *, verbose: bool) -> Iterator[str]:
    """The run in a few lines: its books, its table, what computed it, and what bound it."""
    backend, bound = report.backend, report.bound_by
    computed = "" if backend.arithmetic == backend.precision else f" computed in {backend.arithmetic}"
    precision = f"{backend.backend} {backend.version} {backend.precision}{computed}"
    certificate = report.provenance.certificate or "none: make one with cervix-export"
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.failures.items())
    failed = f" ({kinds})" if kinds else ""
    resumed = f", {report.resumed} of them before this run went on" if report.resumed else ""
    yield f"{report.found} tiles: {report.ok} predicted, {report.failed} failed{failed}{resumed}"
    yield f"table: {out}" + (f"   ({report.ignored} other files ignored)" if report.ignored else "")
    yield f"{precision} on {backend.device_class}, certificate: {certificate}"
    yield (
        f"{report.tiles_per_sec:.1f} tiles/s after {report.provenance.start_s:.1f} s of start; bound by {bound.stage}: "
        f"{bound.threads} thread{'s' * (bound.threads > 1)} sustain {bound.tiles_per_sec:.1f} tiles/s"
    )
    if verbose:
        for stage in report.stages:
            times = f"busy {stage.busy_s:.2f} s, waiting {stage.waiting_s:.2f} s"
            yield f"  {stage.stage:<8} {stage.threads} threads, {times}"
    if report.flagged > MANY_FLAGGED * report.ok:
        yield (
            f"warning: {report.flagged} of {report.ok} predicted tiles ({report.flagged / report.ok:.0%}) look blank, "
            "blurred or shifted to blue: see the column quality"
        )
