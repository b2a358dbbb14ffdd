"""Sections of the training report that not every training has: one cell twice, and the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence

from cervix_train.data.copies import likeness, surest
from cervix_train.data.duplicates import Pair
from cervix_train.results.copy_cost import CopyReport, CostRow
from cervix_train.results.fold_table import CrossValidation, Figures
from cervix_train.results.report.markup import percent, range_percent, sentence, table, text

_SHOWN_PAIRS = 40


def copies_section(report: CopyReport) -> str:
    """The pairs that show one cell, and the figures without them."""
    rows = [(row.without, row.left_out, row.left_out_right, row.tiles, *_cost(row)) for row in report.cost]
    pairs = [_pair(report, pair, "across the split", "split") for pair in surest(report.copies.across_splits)]
    pairs += [_pair(report, pair, "two labels", "label") for pair in surest(report.copies.of_two_labels)]
    head = ("tested tiles", "left out", "of these right", "measured on", "accuracy", "95 %", "macro F1", "95 %")
    return (
        "<h2>One cell twice</h2>"
        f"<p>{len(report.copies.across_splits)} pairs of tiles show one cell on both sides of the split, "
        f"{len(report.copies.of_two_labels)} show one under two labels. copies.json lists all.</p>"
        + table(head, rows)
        + table(("", "tile", "same cell", "likeness"), pairs[:_SHOWN_PAIRS], words=(1, 2, 3))
    )


def _pair(report: CopyReport, pair: Pair, kind: str, word: str) -> tuple[str, str, str, str]:
    """A row of the pairs; `word` is the attribute of a tile in which they differ."""
    tiles = (report.copies.dataset.tiles[index] for index in (pair.first, pair.second))
    first, second = (f"{tile.path.as_posix()} ({getattr(tile, word)})" for tile in tiles)
    return kind, first, second, likeness(pair)


def _cost(row: CostRow) -> tuple[str, str, str, str]:
    if row.accuracy is None or row.macro_f1 is None:
        return ("–", "–", "–", "–")
    return (
        percent(row.accuracy),
        range_percent(row.accuracy_interval or ()),
        percent(row.macro_f1),
        range_percent(row.macro_f1_interval or ()),
    )


def folds_section(figures: CrossValidation) -> str:
    """What each fold reached, what all did, and what the model of the bundle is."""
    rows = [
        (f"fold {item.fold}", item.figures.tiles, item.best_epoch, f"{item.val_loss:.4f}", *_shares(item.figures))
        for item in figures.folds
    ]
    spread = []
    for name in ("accuracy", "macro_f1"):
        mean, deviation = figures.spread(name)
        spread += [f"{percent(mean)} ± {100 * deviation:.1f}", ""]
    total = [("pooled", figures.pooled.tiles, "", "", *_shares(figures.pooled)), ("mean ± sd", "", "", "", *spread)]
    head = ("", "tiles", "epoch", "validation loss", "accuracy", "95 %", "macro F1", "95 %")
    warnings = "".join(f'<p class="warning">{text(sentence(words))}</p>' for words in figures.caveats)
    return (
        "<h2>Fold by fold</h2>"
        + warnings
        + table(head, rows, total=total)
        + f"<p>The next fold chose each fold’s epoch and temperature. The model of this bundle then learnt from all "
        f"tiles, for {figures.epochs} epochs, the median of the folds’ best; nothing measures that model itself.</p>"
    )


def _shares(figures: Figures) -> Sequence[str]:
    return (
        percent(figures.accuracy),
        range_percent(figures.accuracy_interval),
        percent(figures.macro_f1),
        range_percent(figures.macro_f1_interval),
    )
