"""The tables that `cervix-train` prints: what backbones reach, what folds reach, what copies cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cervix_engine.cli.shared.tables import new_table

if TYPE_CHECKING:
    from rich.table import Table

    from cervix_train.results.copy_cost import CopyReport
    from cervix_train.results.fold_table import CrossValidation, Figures
    from cervix_train.training.comparators import BackboneComparison


def comparison_table(comparison: BackboneComparison) -> Table:
    """What each backbone reaches."""
    heads = ("backbone", "val loss", "test accuracy", "macro F1", "sensitivity", "specificity", "seconds")
    table = new_table(*heads, title="Test split, with 95 % intervals; abnormal against the rest")
    for item in comparison.comparators:
        if item.error:
            table.add_row(item.backbone, "", "not trained")
            continue
        figures = (item.accuracy, item.macro_f1, item.sensitivity, item.specificity)
        shown = ["" if it is None else _with_interval(it[0], it[1:]) for it in figures]
        table.add_row(item.backbone, f"{item.val_loss:.3f}", *shown, f"{item.seconds:.0f}")
    return table


def folds_table(figures: CrossValidation) -> Table:
    """A row a fold, then all answers out of fold."""
    table = new_table("fold", "tiles", "groups", "epoch", "val loss", "accuracy", "macro F1", title="Out of fold, 95 %")
    for item in figures.folds:
        table.add_row(str(item.fold), *_counts(item.figures), f"{item.best_epoch}", f"{item.val_loss:.3f}",
                      *_shares(item.figures))  # fmt: skip
    table.add_section()
    table.add_row("pooled", *_counts(figures.pooled), "", "", *_shares(figures.pooled))
    spread = (figures.spread(name) for name in ("accuracy", "macro_f1"))
    table.add_row("mean ± sd of folds", "", "", "", "", *(f"{mean:.3f} ± {sd:.3f}" for mean, sd in spread))
    return table


def copies_table(report: CopyReport) -> Table:
    """What the tested tiles' figures are without those that show a cell twice."""
    heads = ("tested tiles", "left out", "of these right", "measured on", "accuracy", "macro F1")
    table = new_table(*heads, title="What copies and cells with two labels cost")
    for row in report.cost:
        figures = (
            "" if value is None or interval is None else _with_interval(value, interval)
            for value, interval in ((row.accuracy, row.accuracy_interval), (row.macro_f1, row.macro_f1_interval))
        )
        table.add_row(row.without, str(row.left_out), str(row.left_out_right), str(row.tiles), *figures)
    return table


def _counts(figures: Figures) -> tuple[str, str]:
    return str(figures.tiles), str(figures.groups)


def _shares(figures: Figures) -> tuple[str, str]:
    return (
        _with_interval(figures.accuracy, figures.accuracy_interval),
        _with_interval(figures.macro_f1, figures.macro_f1_interval),
    )


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
