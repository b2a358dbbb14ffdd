"""`cervix-compare-folds`: which of two recipes is better, on the same folds of the same tiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, option
from cervix_engine.cli.shared.tables import new_table, wide_console
from cervix_engine.files import output_errors, write_json

if TYPE_CHECKING:
    from cervix_train.results.paired import PairedComparison


@click.command(cls=CervixCommand)
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@option("--json", "json_file", type=FILE, help="Also write all numbers to this file.")
def main(first: Path, second: Path, json_file: Path | None) -> None:
    """Compare the recipes of the bundles FIRST and SECOND, both of cervix-train --folds, tile by tile.

    Both must have the same tiles in the same folds: train them with the same DATA, --folds and --seed. The intervals of
    the differences come from resampling whole groups; McNemar's exact test takes tiles as independent.
    """
    from cervix_engine.cli.shared.surroundings import prepare_outputs
    from cervix_engine.outputs.places import json_start
    from cervix_train.results.fold_table import FoldTable
    from cervix_train.results.paired import PairedComparison, compare_folds

    prepare_outputs((json_file, json_start(PairedComparison.schema)), inputs=(first, second))
    comparison = compare_folds(FoldTable.read(first), FoldTable.read(second))
    if json_file:
        with output_errors(f"cannot write {json_file}"):
            write_json(json_file, comparison.to_json())
    _print(comparison)


def _print(comparison: PairedComparison) -> None:
    table = new_table(
        "", "tiles", "first", "second", "first less second", "95 % by groups", title="Two recipes on the same folds"
    )
    for pair in comparison.folds:
        numbers = (f"{pair.first:.4f}", f"{pair.second:.4f}", f"{pair.first - pair.second:+.4f}")
        table.add_row(f"fold {pair.fold}, accuracy", str(pair.tiles), *numbers, "")
    table.add_section()
    for name, item in (("accuracy", comparison.accuracy), ("macro F1", comparison.macro_f1)):
        low, high = item.interval
        numbers = (f"{item.first:.4f}", f"{item.second:.4f}", f"{item.difference:+.4f}")
        table.add_row(f"pooled {name}", str(comparison.tiles), *numbers, f"{low:+.4f} to {high:+.4f}")
    wide_console().print(table)
    low, high = comparison.accuracy.interval
    better = "the first is better" if low > 0 else "the second is better" if high < 0 else "neither is shown better"
    click.echo(
        f"only the first right: {comparison.only_first}, only the second: {comparison.only_second}; McNemar's exact "
        f"test p = {comparison.mcnemar_p:.3g}\n"
        f"by the interval of the accuracies' difference, {better}"
    )


if __name__ == "__main__":
    main()
