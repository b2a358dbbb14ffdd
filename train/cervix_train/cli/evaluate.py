"""`cervix-evaluate`: how well a Keras model does on labelled tiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cervix_engine.bundle.bundle import default_bundle
from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, batch_size_option, follow_links_option, option
from cervix_engine.files import output_errors, write_json
from cervix_engine.words import counted
from cervix_train.cli import require_libraries

if TYPE_CHECKING:
    from cervix_train.data.dataset import Split
    from cervix_train.results.intervals import Interval
    from cervix_train.results.metrics import Averages, ClassScores, Metrics

SOME_FAILED = 3


@click.command(cls=CervixCommand)
@click.argument("paths", metavar="[MODEL] DATA", nargs=-1, required=True, type=FILE)
@option("--model", type=FILE, help="The same as MODEL.  [default: $CERVIX_MODEL or models/cervix]")
@option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Measure on the tiles of this split only.  [default: all]",
)
@batch_size_option()
@follow_links_option
@option("--json", "json_file", type=FILE, help="Also write the metrics to this file.")
def main(
    paths: tuple[Path, ...],
    model: Path | None,
    split: Split | None,
    batch_size: int,
    follow_links: bool,
    json_file: Path | None,
) -> int:
    """Measure the Keras model MODEL on the labelled tiles in DATA.

    MODEL is a bundle folder, or a .keras file beside its contract.json. --split takes the split that DATA gives,
    else the one that the bundle remembers from its training. Exit code 3: some tiles could not be decoded.
    """
    from cervix_engine.cli.shared.logs import log_lines
    from cervix_engine.cli.shared.surroundings import prepare_outputs
    from cervix_engine.outputs.places import json_start
    from cervix_train.results.evaluate import evaluate
    from cervix_train.results.metrics import Metrics

    model_path, data = _arguments(paths, model)
    require_libraries()
    prepare_outputs((json_file, json_start(Metrics.schema)), inputs=(model_path, data), needs_scratch=True)
    with log_lines("cervix_train", "cervix_keras"):
        metrics = evaluate(model_path, data, split=split, batch_size=batch_size, follow_links=follow_links)
    if json_file:
        _write(json_file, metrics)
    _print(metrics)
    return SOME_FAILED if metrics.failed else 0


def _arguments(paths: tuple[Path, ...], model: Path | None) -> tuple[Path, Path]:
    if len(paths) > 2 or (len(paths) == 2 and model):
        raise click.UsageError("expected [MODEL] DATA, with MODEL at most once")
    if len(paths) == 2:
        return paths[0], paths[1]
    return model or default_bundle(), paths[0]


def _write(path: Path, metrics: Metrics) -> None:
    with output_errors(f"cannot write {path}"):
        write_json(path, metrics.to_json())


def _print(metrics: Metrics) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "class", "tiles", "precision", "recall", "F1", title=f"{counted(metrics.tiles, 'tile')} ({metrics.split})"
    )
    for item in metrics.per_class:
        table.add_row(item.name, str(item.tiles), *_numbers(item))
    table.add_section()
    table.add_row("macro", "", *_numbers(metrics.macro))
    table.add_row("weighted", "", *_numbers(metrics.weighted))
    console = Console()
    console.print(table)
    console.print(f"accuracy {metrics.accuracy:.4f} {_interval(metrics.accuracy_interval)}")
    console.print(f"macro F1 {metrics.macro.f1:.4f} {_interval(metrics.macro_f1_interval)}")
    if abnormal := metrics.abnormal_vs_rest:
        for name, value, interval in (
            ("sensitivity", abnormal.sensitivity, abnormal.sensitivity_interval),
            ("specificity", abnormal.specificity, abnormal.specificity_interval),
            ("auroc", abnormal.auroc, abnormal.auroc_interval),
        ):
            console.print(f"abnormal vs rest: {name} {value:.4f} {_interval(interval)}")
    calibration = metrics.calibration
    console.print(
        f"calibration: NLL {calibration.nll:.4f}, ECE {calibration.ece:.4f} "
        f"{_interval(calibration.ece_interval)}, "
        f"perfectly calibrated it would lie in {_interval(calibration.ece_if_calibrated)}",
        soft_wrap=True,
    )
    for missed in metrics.false_negatives:
        called = ", ".join(f"{count} as {name}" for name, count in missed.called.items())
        console.print(f"missed of {missed.name}: {missed.missed}" + (f" ({called})" if called else ""), soft_wrap=True)


def _interval(interval: Interval) -> str:
    return f"({interval[0]:.4f}-{interval[1]:.4f})"


def _numbers(scores: ClassScores | Averages) -> list[str]:
    return [f"{value:.4f}" for value in (scores.precision, scores.recall, scores.f1)]


if __name__ == "__main__":
    main()
