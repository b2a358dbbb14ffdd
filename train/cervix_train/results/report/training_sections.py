"""The sections on the training: how it learnt, of which tiles, one cell twice, folds, and how to do it again."""

from __future__ import annotations

from collections.abc import Sequence

from cervix_engine.words import counted
from cervix_train.data.copies import likeness, surest
from cervix_train.data.distribution import IMBALANCED
from cervix_train.data.duplicates import Pair
from cervix_train.results.copy_cost import CopyReport, CostRow
from cervix_train.results.fold_table import Figures
from cervix_train.results.report.markup import moment, percent, plain, range_percent, sentence, table, text
from cervix_train.results.report.page_input import PageInput

_SHOWN_PAIRS = 40


def learning(given: PageInput) -> str:
    head = ("stage", "epochs", "best epoch", "validation loss", "validation accuracy", "test accuracy", "test macro F1")
    rows = [
        (
            item.name + (" (kept)" if item.kept else ""),
            item.epochs,
            item.best_epoch,
            f"{item.val_loss:.4f}",
            percent(item.val_accuracy),
            percent(item.test_accuracy),
            percent(item.test_macro_f1),
        )
        for item in given.record.stages
    ]
    curves = ("history", "Loss and accuracy per epoch; the dotted line marks the epoch that was kept.")
    return "<h2>Learning</h2>" + given.figures(curves) + table(head, rows)


def data(given: PageInput) -> str:
    distribution, left_out, names = given.record.distribution, given.record.left_out, given.names
    rows = [(names[item.name], *item.splits, sum(item.splits)) for item in distribution.classes]
    total = ("all", *distribution.totals.splits, sum(distribution.totals.splits))
    uneven = (
        f'<p class="warning">The classes are unequal: the largest has {distribution.imbalance:.1f} times the '
        "training tiles of the smallest. Read macro F1 and each class’s recall, not accuracy alone.</p>"
        if distribution.imbalance >= IMBALANCED
        else ""
    )
    tiles, were = ("1 tile", "was") if left_out == 1 else (f"{left_out:,} tiles", "were")
    omitted = f"<p>{tiles} could not be decoded and {were} left out; split.csv says why.</p>" if left_out else ""
    return (
        "<h2>The tiles</h2>"
        + uneven
        + given.figures(("distribution", "Tiles of each class in each split."))
        + table(("class", "train", "val", "test", "all"), rows, total=[total])
        + omitted
    )


def recipe(given: PageInput) -> str:
    record = given.record
    versions = {f"{name} version": version for name, version in record.versions.items()}
    rows = [(name.replace("_", " "), plain(value)) for name, value in {**record.recipe, **versions}.items()]
    rows += record.environment.items()
    facts = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in (*_run(given), *rows))
    return f'<h2>How to do it again</h2><dl class="facts">{facts}</dl>'


def _run(given: PageInput) -> list[tuple[str, str]]:
    facts = [("precision", given.precision)]
    if run := given.record.run:
        times = {"started": moment(run.started_at), "ended": moment(run.ended_at), "took": f"{run.seconds:,.1f} s"}
        facts += times.items()
        facts += [("host", run.host), ("command", run.command or "called from Python")]
    return facts


def copies(given: PageInput) -> str:
    """The pairs that show one cell, and the figures without them; empty where there are none."""
    report = given.copies
    if not report or not report.found:
        return ""
    rows = [(row.without, row.left_out, row.left_out_right, row.tiles, *_cost(row)) for row in report.cost]
    pairs = [_pair(report, pair, "across the split", "split") for pair in surest(report.copies.across_splits)]
    pairs += [_pair(report, pair, "two labels", "label") for pair in surest(report.copies.of_two_labels)]
    across, labelled_twice = len(report.copies.across_splits), len(report.copies.of_two_labels)
    head = ("tested tiles", "left out", "of these right", "measured on", "accuracy", "95 %", "macro F1", "95 %")
    return (
        "<h2>One cell twice</h2>"
        f"<p>{counted(across, 'pair of tiles shows', 'pairs of tiles show')} one cell on both sides of the split, "
        f"{counted(labelled_twice, 'shows', 'show')} one under two labels. copies.json lists all.</p>"
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


def folds(given: PageInput) -> str:
    """What each fold reached, what all did, and what the model of the bundle is; empty without folds."""
    figures = given.folds
    if not figures:
        return ""
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
