"""`cervix-export`: a Keras model's bundle becomes a deployable one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cervix_engine.bundle.bundle import default_bundle
from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.logs import log_lines
from cervix_engine.cli.shared.options import FILE, batch_size_option, expect_digest_option, option
from cervix_engine.cli.shared.surroundings import scratch_in
from cervix_engine.cli.shared.tables import new_table, wide_console
from cervix_engine.errors import OutputError, UsageError
from cervix_engine.files import local_path, output_errors
from cervix_export.cli.certificate_table import certificate_table
from cervix_export.cli.engine_options import engine_options
from cervix_export.engines.plan import EngineChoice, EngineOptions, EnginePlan, decide_engine
from cervix_export.export import ExportPlan, ExportReport, export_bundle
from cervix_keras.model_file import refuse_hdf5

if TYPE_CHECKING:
    from rich.table import Table

    from cervix_export.graphs.int8 import Int8Record
    from cervix_export.triton import TritonModel

SHOWN_BLOCKS = 10


class RepositoryOption(click.Path):
    """A folder of this machine that is named: no address, and not the working folder by a variable that is empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty: name a folder, or . for this one", param, ctx)
        try:
            local_path(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


@click.command(cls=CervixCommand)
@click.argument("model", required=False, type=FILE)
@option("--model", "model_option", type=FILE, help="The same as MODEL.")
@option("--fp16", is_flag=True, help="Also make the half-precision graph.")
@option("--int8", is_flag=True, help="Also make the integer graph, and print what rounding costs where.")
@engine_options
@option(
    "--keep-graphs", is_flag=True, help="Take the bundle's graphs as they are, also where Keras could make them anew."
)
@option(
    "--triton",
    metavar="DIR",
    type=RepositoryOption(path_type=Path, file_okay=False),
    help="Also write what is certified into this model repository of Triton Inference Server.",
)
@expect_digest_option
@batch_size_option("Batch size to certify.")
@option("--tiles", type=click.IntRange(1), help="Number of golden tiles to certify on.  [default: all]")
def main(
    model: Path | None,
    model_option: Path | None,
    fp16: bool,
    int8: bool,
    engine: EngineChoice,
    keep_graphs: bool,
    triton: Path | None,
    expect_digest: str | None,
    batch_size: int,
    tiles: int | None,
    **engine_numbers: Any,
) -> None:
    """Make the bundle MODEL deployable: convert its Keras model to ONNX and certify the result on real tiles.

    MODEL is the folder that cervix-train wrote, by default $CERVIX_MODEL, else models/cervix. Where Keras is not
    installed, the graphs that MODEL already holds get engines and certificates for this machine. Those that other
    machines made stay, as long as their graph does.

    Exit codes: 0 done, 1 failed, 2 usage, 4 the graph's answers are too far from the Keras model's.
    """
    root = _bundle_folder(model, model_option)
    scratch_in(root.absolute().parent, root)
    if triton:
        _check_repository(triton, root)
    with log_lines("cervix_export", "cervix_keras"):
        decision = decide_engine(engine, EngineOptions(**engine_numbers))
        planned = decision if isinstance(decision, EnginePlan) else None
        plan = ExportPlan(fp16, int8, planned, batch_size, tiles, keep_graphs)
        report = export_bundle(root, plan, expect_digest=expect_digest)
        written = _write_repository(report, triton) if triton else []
    _show(report)
    for item in written:
        click.echo(f"{triton}/{item.name}: {item.artefact}")
    if isinstance(decision, str):
        click.echo(decision, err=True)

    from cervix_export.certify import require_passed

    require_passed(list(report.certificates))


def _check_repository(folder: Path, root: Path) -> None:
    from cervix_export.triton import check_repository

    with output_errors(f"cannot look at {folder}"):
        check_repository(folder, root)


def _write_repository(report: ExportReport, folder: Path) -> list[TritonModel]:
    from cervix_export.triton import write_repository

    try:
        return write_repository(report.bundle, folder)
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or folder}: {error.strerror}") from error


def _bundle_folder(argument: Path | None, option: Path | None) -> Path:
    """The bundle's folder from the two ways to name it; what is no folder is refused by its name alone."""
    if argument and option and argument != option:
        raise UsageError(f"two models were named, {argument} and {option}: name one")
    model = argument or option or default_bundle()
    refuse_hdf5(model)
    if model.is_file():
        raise UsageError(
            f"{model} is a file, expected a bundle: the folder with model.keras, contract.json and golden tiles that "
            "cervix-train writes"
        )
    return model


def _show(report: ExportReport) -> None:
    console = wide_console(160)
    for name in sorted(name for name in report.bundle.files if name.startswith("model.") or name.endswith(".engine")):
        console.print(f"{name:18} {(report.bundle.root / name).stat().st_size / 1e6:9.1f} MB", highlight=False)
    if report.int8:
        console.print(_cost_table(report.int8))
    if report.certificates:
        console.print(certificate_table(report.certificates))
    else:
        console.print("no certificate: nothing on this machine runs what was made", highlight=False)
    console.print(f"bundle {report.bundle.root}\ndigest {report.bundle.digest}", highlight=False)


def _cost_table(record: Int8Record) -> Table:
    """The blocks that rounding hurts most; all of them are in the bundle's `model.int8.json`."""
    title = f"INT8: {record.integer_share:.1%} of the arithmetic in integers; what rounding one block alone costs"
    table = new_table("block", "layers", "RMS |Δp|", "kept in", title=title, title_justify="left")
    for block in sorted(record.blocks, key=lambda item: -item.rms)[:SHOWN_BLOCKS]:
        table.add_row(block.name, str(block.layers), f"{block.rms:.2g}", "float" if block.in_float else "int8")
    return table


if __name__ == "__main__":
    main()
