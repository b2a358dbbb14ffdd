"""`cervix-parity`: does every deployable form of a model still answer like Keras?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cervix_engine.bundle.bundle import default_bundle
from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.logs import log_lines
from cervix_engine.cli.shared.options import FILE, batch_size_option, expect_digest_option, model_option, option
from cervix_engine.cli.shared.tables import new_table, wide_console

if TYPE_CHECKING:
    from rich.table import Table

    from cervix_export.parity.layers import LayerResult
    from cervix_export.parity.measure import ParityPlan, ParityReport

SHOWN_FLIPS = 10


@click.command(cls=CervixCommand)
@model_option("compare")
@option("--data", type=FILE, help="Manifest of labelled tiles. [default: golden tiles]")
@option("--split", "splits", multiple=True, help="Only tiles of this split of --data; may be repeated.")
@option(
    "--keras/--no-keras",
    default=None,
    help="Compare with Keras itself, or with what the golden tiles record of it. [default: Keras where installed]",
)
@option("--atol", type=click.FloatRange(0, 1), help="Bound on every difference, beside each precision's own.")
@option("--min-agreement", type=click.FloatRange(0, 1), default=0.0, help="Least share of equal classes.")
@batch_size_option("Batch size.")
@option("--json", "json_file", type=FILE, help="JSON file for all numbers.")
@option("--junit", type=FILE, help="JUnit XML file, for a build server.")
@option("--history", type=FILE, help="JSON-lines file to append the results to.")
@option("--drift-plot", type=FILE, help="PNG file for a plot of --history.")
@option(
    "--certify",
    is_flag=True,
    help="Instead of comparing layers, write certificates for this machine's runtimes into the bundle.",
)
@expect_digest_option
def main(
    model: Path | None,
    data: Path | None,
    splits: tuple[str, ...],
    keras: bool | None,
    atol: float | None,
    min_agreement: float,
    batch_size: int,
    certify: bool,
    expect_digest: str | None,
    **written: Path | None,
) -> None:
    """Compare a bundle's answers with Keras's in three layers, so that a fault names its place.

    Pixels: what the engine's inference stage receives, with what training saw. Graph: the FP32 graph with Keras.
    Artefact: every file, backend and precision that this machine can run, with the FP32 graph.

    With --certify, each file, backend and precision is compared with the golden tiles' recorded answers, and the bundle
    gets a certificate of it: after an update of a runtime, or on another kind of machine. Keras is not needed, and
    certificates of other machines stay.

    Exit codes: 0 all is near enough, 1 failed, 2 usage, 4 something is not.
    """
    from cervix_engine.errors import UsageError
    from cervix_export.parity.layers import Limits
    from cervix_export.parity.measure import ParityPlan

    root = model or default_bundle()
    if certify:
        if any((data, splits, keras, atol, min_agreement, *written.values())):
            raise UsageError("--certify takes the golden tiles and each precision's own gate: leave the other options")
        _certify(root, batch_size, expect_digest)
        return
    if splits and data is None:
        raise UsageError("--split is of --data: name a manifest")
    where = Written(**written)
    where.check(inputs=(root, data), needs_scratch=keras is not False)
    plan = ParityPlan(data, splits, keras, batch_size, Limits(atol, min_agreement))
    _compare(root, plan, where, expect_digest)


@dataclass(frozen=True, slots=True)
class Written:
    """Where results go, beside the screen."""

    json_file: Path | None
    junit: Path | None
    history: Path | None
    drift_plot: Path | None

    def __post_init__(self) -> None:
        from cervix_engine.errors import UsageError
        from cervix_engine.extras import require_installed

        if self.drift_plot and not self.history:
            raise UsageError("--drift-plot draws the nights of --history: name that file")
        if self.drift_plot:
            require_installed("train", "matplotlib", work="--drift-plot")

    def check(self, *, inputs: tuple[Path | None, ...], needs_scratch: bool) -> None:
        """Refuse what could not be written, or is of somebody else."""
        from cervix_engine.cli.shared.surroundings import prepare_outputs
        from cervix_engine.outputs.places import json_start
        from cervix_export.parity.measure import ParityReport
        from cervix_export.parity.records import read_history

        starts = (json_start(ParityReport.schema), b"<?xml", b"", b"\x89PNG")
        files = zip((self.json_file, self.junit, self.history, self.drift_plot), starts, strict=True)
        prepare_outputs(*files, inputs=inputs, needs_scratch=needs_scratch)
        if self.history and self.history.is_file():
            read_history(self.history)

    def write(self, report: ParityReport) -> None:
        """Raises OutputError where a file cannot be written."""
        from cervix_engine.errors import OutputError
        from cervix_engine.files import write_json
        from cervix_export.parity.records import append_history, plot_drift, read_history, write_junit

        try:
            if self.json_file:
                write_json(self.json_file, report.to_json())
            if self.junit:
                write_junit(self.junit, report)
            if self.history:
                append_history(self.history, report)
                if self.drift_plot:
                    plot_drift(self.drift_plot, read_history(self.history))
        except OSError as error:
            raise OutputError(f"cannot write {error.filename}: {error.strerror}") from error


def _compare(root: Path, plan: ParityPlan, written: Written, expect_digest: str | None) -> None:
    from cervix_engine.bundle.bundle import Bundle
    from cervix_engine.errors import ParityError
    from cervix_export.parity.measure import measure_layers

    bundle = Bundle.open(root, expect_digest=expect_digest)
    with log_lines("cervix_export", "cervix_keras"):
        report = measure_layers(bundle, plan)
    _show(report)
    written.write(report)
    if not report.passed:
        short = [
            f"{item.layer}, {item.subject}: {'; '.join(item.objections)}" for item in report.layers if not item.passed
        ]
        raise ParityError(" | ".join(short), report=report.to_json())


def _certify(model: Path, batch_size: int, expect_digest: str | None) -> None:
    from cervix_export.certify import require_passed
    from cervix_export.cli.certificate_table import certificate_table
    from cervix_export.export import ExportPlan, export_bundle

    with log_lines("cervix_export"):
        report = export_bundle(model, ExportPlan(batch_size=batch_size, keep_graphs=True), expect_digest=expect_digest)
    console = wide_console(160)
    console.print(certificate_table(report.certificates))
    console.print(f"bundle {report.bundle.root}\ndigest {report.bundle.digest}", highlight=False)
    require_passed(list(report.certificates))


def _show(report: ParityReport) -> None:
    console = wide_console()
    console.print(_table(report))
    flips = [(item.subject, flip) for item in report.layers if item.parity for flip in item.parity.flips]
    for subject, flip in sorted(flips, key=lambda item: -item[1].margin)[:SHOWN_FLIPS]:
        line = f"{flip.tile}: {flip.reference} became {flip.candidate}, margin {flip.margin:.3f} ({subject})"
        console.print(line, highlight=False, markup=False)
    if len(flips) > SHOWN_FLIPS:
        console.print(f"and {len(flips) - SHOWN_FLIPS} more: --json lists all")
    console.print(f"{report.tiles}; {report.machine}; bundle {report.bundle[:12]}", highlight=False, markup=False)


def _table(report: ParityReport) -> Table:
    heads = ("layer", "compared", "max |Δp|", "p99 |Δp|", "equal classes", "macro-F1 drop", "ECE change", "")
    table = new_table(*heads)
    for item in report.layers:
        verdict = "SHORT" if not item.passed else "uncertified" if item.objections else "ok"
        table.add_row(item.layer, item.subject, *_numbers(item), verdict)
    return table


def _numbers(item: LayerResult) -> tuple[str, str, str, str, str]:
    if item.parity is None or item.agreement_interval is None:
        return ("", "", "", "", "")
    low, high = item.agreement_interval
    agreement = f"{item.parity.top1_agreement:.2%} ({low:.2%} to {high:.2%})"
    if item.accuracy is None:
        drop, ece = "", ""
    else:
        drop = (
            f"{100 * item.accuracy.macro_f1_drop:.2f} ({', '.join(f'{100 * x:.2f}' for x in item.accuracy.interval)})"
        )
        ece = f"{item.accuracy.ece_change:+.4f}"
    return f"{item.parity.max_absdiff:.1e}", f"{item.parity.p99_absdiff:.1e}", agreement, drop, ece


if __name__ == "__main__":
    main()
