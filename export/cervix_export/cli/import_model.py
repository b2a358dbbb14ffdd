"""`cervix-import`: a model that somebody else trained becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cervix_engine.bundle.bundle import DEFAULT_BUNDLE
from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.logs import log_lines
from cervix_engine.cli.shared.options import FILE, option
from cervix_engine.words import counted

if TYPE_CHECKING:
    from cervix_export.imported.importer import ImportReport

# Below, a certificate says little.
FEW_TILES = 32


@click.command(cls=CervixCommand)
@click.argument("model", type=FILE)
@option(
    "--contract",
    type=FILE,
    required=True,
    help="JSON file that states classes, input size, and what lies between raw pixels and the model.",
)
@option(
    "--golden",
    type=FILE,
    required=True,
    help="Folder of tiles to check and certify on, or a CSV file path[,label][,prob_<class>...] beside them.",
)
@option(
    "--expected",
    type=FILE,
    help="CSV file path[,label][,prob_<class>...]: true classes of the golden tiles, and the answers that the model's "
    "own pipeline gives.",
)
@option(
    "--atol",
    type=click.FloatRange(0, 1),
    default=0.01,
    help="Largest difference of a probability from the expected one.",
)
@option("--calibration", type=FILE, help="Folder of other tiles, such as some that it learnt from: for INT8.")
@option("-o", "--out", type=FILE, default=DEFAULT_BUNDLE, help="Folder of the bundle to write.")
@option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
def main(
    model: Path,
    contract: Path,
    golden: Path,
    expected: Path | None,
    atol: float,
    calibration: Path | None,
    out: Path,
    overwrite: bool,
) -> None:
    """Bring MODEL, a .keras or an .onnx file, to raw pixels and probabilities, and write it as a bundle.

    What the contract states (layout, order of channels, scale, mean, deviation, centre crop, logits) is put into the
    model, whose own answers to the golden tiles are then the reference of all certificates: cervix-export,
    cervix-parity and cervix-batch take the bundle as any other. An ONNX file needs no TensorFlow.

    Exit codes: 0 done, 1 failed, 2 usage, 4 the model does not answer as expected.
    """
    from cervix_engine.bundle.imported import ImportStatement
    from cervix_engine.cli.shared.surroundings import scratch_in
    from cervix_engine.outputs.places import require_outside
    from cervix_export.imported.importer import ImportPlan, import_model

    scratch_in(next(folder for folder in out.absolute().parents if folder.is_dir()))
    if out.exists():
        require_outside(out, (contract,))
    statement = ImportStatement.load(contract)
    with log_lines("cervix_export", "cervix_keras"):
        report = import_model(ImportPlan(model, statement, golden, expected, calibration, out, atol, overwrite))
    click.echo("\n".join(_lines(report)))


def _lines(report: ImportReport) -> list[str]:
    """What was checked, and what was not."""
    lines, checks = [], report.checks
    if expected := checks.expected:
        lines.append(
            f"answers as expected: up to {expected.max_absdiff:.2g} off on {counted(expected.tiles, 'tile')}, "
            f"{expected.top1_agreement:.1%} of the classes equal"
        )
    if labels := checks.labels:
        low, high = labels.accuracy_interval
        lines.append(
            f"{labels.right} of {counted(labels.tiles, 'labelled tile')} right: {labels.accuracy:.1%} "
            f"({low:.1%} to {high:.1%})"
        )
        if not labels.better_than_chance:
            lines.append(
                f"warning: that is not surely more than {labels.largest_class:.1%}, which always saying the most "
                "frequent class would give: is everything stated right?"
            )
    lines += [f"not checked: {words}" for words in checks.not_checked]
    if report.tiles < FEW_TILES:
        lines.append(f"warning: certificates will rest on {counted(report.tiles, 'golden tile')} alone: give more")
    bundle = report.bundle
    return [*lines, f"reference: {report.reference}", f"bundle {bundle.root}", f"digest {bundle.digest}"]


if __name__ == "__main__":
    main()
