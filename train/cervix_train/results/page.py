"""Writes the training report page, `report.html`: a whole training in one file, for a person to read.

Pictures are inside the file, no script runs and nothing is fetched, so it can be sent and kept.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cervix_train.data.copies import likeness, surest
from cervix_train.data.distribution import IMBALANCED
from cervix_train.data.duplicates import Pair
from cervix_train.results.calibration import Calibration, calibration_warnings
from cervix_train.results.copy_cost import CopyReport, CostRow
from cervix_train.results.metrics import Metrics
from cervix_train.results.record import TrainingRecord

SHOWN_PAIRS = 40

_STYLE = """
:root { --ink: #1d2733; --soft: #5d6b7a; --line: #dde3ea; --accent: #1f5fa8; --paper: #fff; --wash: #f5f7fa }
* { box-sizing: border-box }
body { margin: 0; background: var(--wash); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif }
main { max-width: 62rem; margin: 2.5rem auto; padding: 2.5rem 3rem; background: var(--paper);
       border: 1px solid var(--line); border-radius: 10px }
h1 { margin: 0; font-size: 1.8rem } h2 { margin: 2.6rem 0 .6rem; font-size: 1.25rem }
p { max-width: 46rem } .lead, figcaption, .note { color: var(--soft) } .note, figcaption { font-size: .88rem }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.4rem 0 }
.card { flex: 1 1 10rem; padding: .9rem 1.1rem; border: 1px solid var(--line); border-radius: 8px }
.card b { display: block; font-size: 1.7rem; color: var(--accent); font-variant-numeric: tabular-nums }
.card span { color: var(--soft); font-size: .85rem }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .32rem .9rem .32rem 0; text-align: right; border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--soft); font-size: .85rem } th:first-child, td:first-child { text-align: left }
tr.total td { font-weight: 600 } td.text { text-align: left }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto }
.warning { padding: .7rem 1rem; border-left: 4px solid #c77700; background: #fff7e8; max-width: 46rem }
"""


@dataclass(frozen=True, slots=True)
class PageInput:
    """What the page tells; `metrics` are the test split's, `pictures` is the folder with the plots.

    `copies` are None where nobody looked for them.
    """

    metrics: Metrics
    calibration: Calibration
    record: TrainingRecord
    pictures: Path
    copies: CopyReport | None = None


def write_page(path: Path, given: PageInput) -> None:
    """Write the page; the plots must already be in `given.pictures`."""
    sections = (_summary, _data, _copies, _learning, _classes, _misses, _abnormal, _calibration, _examples, _recipe)
    body = "\n".join(section(given) for section in sections)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Training report</title><style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _summary(given: PageInput) -> str:
    metrics = given.metrics
    cards = [
        ("accuracy", metrics.accuracy, metrics.accuracy_interval),
        ("macro F1", metrics.macro.f1, metrics.macro_f1_interval),
    ]
    if abnormal := metrics.abnormal_vs_rest:
        cards.append(("sensitivity, abnormal", abnormal.sensitivity, abnormal.sensitivity_interval))
        cards.append(("specificity, abnormal", abnormal.specificity, abnormal.specificity_interval))
    boxes = "".join(
        f'<div class="card">{_text(name)}<b>{_percent(value)}</b><span>95 %: {_range(interval)}</span></div>'
        for name, value, interval in cards
    )
    groups = f" of {metrics.groups} separate groups" if metrics.groups else ""
    record, tiles = given.record, sum(given.record.distribution.totals.splits)
    return (
        "<h1>Training report</h1>"
        f'<p class="lead">{_text(record.recipe["backbone"])} on {tiles} labelled tiles, measured on '
        f"{metrics.tiles} test tiles{groups} that had no part in training.</p>"
        f'<div class="cards">{boxes}</div>'
        '<p class="note">Research use only: not a diagnostic device. Intervals come from resampling whole groups; '
        "those of shares are at each end the wider of that and Wilson’s.</p>"
    )


def _data(given: PageInput) -> str:
    distribution, left_out = given.record.distribution, given.record.left_out
    counts = (*distribution.classes, distribution.totals)
    *rows, total = [(item.name, *item.splits, sum(item.splits)) for item in counts]
    uneven = (
        f'<p class="warning">The classes are unequal: the largest has {distribution.imbalance:.1f} times the '
        "training tiles of the smallest. Read macro F1 and each class’s recall, not accuracy alone.</p>"
        if distribution.imbalance >= IMBALANCED
        else ""
    )
    omitted = (
        f"<p>{left_out} tiles could not be decoded and were left out; split.csv names them.</p>" if left_out else ""
    )
    return (
        "<h2>The tiles</h2>"
        + uneven
        + _picture(given, "distribution", "Tiles of each class in each split.")
        + _table(("class", "train", "val", "test", "all"), rows, total=[total])
        + omitted
    )


def _copies(given: PageInput) -> str:
    """Nothing where no copy lies across the split and no cell has two labels."""
    report = given.copies
    if report is None or not report.found:
        return ""
    rows = [(row.without, row.left_out, row.left_out_right, row.tiles, *_cost(row)) for row in report.cost]
    pairs = [_pair(report, pair, "across the split", "split") for pair in surest(report.copies.across_splits)]
    pairs += [_pair(report, pair, "two labels", "label") for pair in surest(report.copies.of_two_labels)]
    head = ("test tiles", "left out", "of these right", "measured on", "accuracy", "95 %", "macro F1", "95 %")
    return (
        "<h2>One cell twice</h2>"
        f"<p>{len(report.copies.across_splits)} pairs of tiles show one cell on both sides of the split, "
        f"{len(report.copies.of_two_labels)} show one under two labels. copies.json lists all.</p>"
        + _table(head, rows)
        + _table(("", "tile", "same cell", "likeness"), pairs[:SHOWN_PAIRS], text=(1, 2, 3))
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
        _percent(row.accuracy),
        _range(row.accuracy_interval or ()),
        _percent(row.macro_f1),
        _range(row.macro_f1_interval or ()),
    )


def _learning(given: PageInput) -> str:
    head = ("stage", "epochs", "best epoch", "validation loss", "validation accuracy", "test accuracy", "test macro F1")
    rows = [
        (
            item.name + (" (kept)" if item.kept else ""),
            item.epochs,
            item.best_epoch,
            f"{item.val_loss:.4f}",
            _percent(item.val_accuracy),
            _percent(item.test_accuracy),
            _percent(item.test_macro_f1),
        )
        for item in given.record.stages
    ]
    curves = _picture(given, "history", "Loss and accuracy per epoch; the dotted line marks the epoch that was kept.")
    return "<h2>Learning</h2>" + curves + _table(head, rows)


def _classes(given: PageInput) -> str:
    metrics = given.metrics
    rows = [
        (
            item.name,
            _percent(item.precision),
            _percent(item.recall),
            _range(item.recall_interval),
            _percent(item.f1),
            item.tiles,
        )
        for item in metrics.per_class
    ]
    totals = [
        (name, _percent(average.precision), _percent(average.recall), "", _percent(average.f1), metrics.tiles)
        for name, average in (("macro", metrics.macro), ("weighted", metrics.weighted))
    ]
    head = ("class", "precision", "recall", "95 %", "F1", "tiles")
    return (
        "<h2>Class by class</h2>"
        + _table(head, rows, total=totals)
        + _picture(given, "confusion_matrix", "Rows are the true classes, columns what the tiles were called.")
    )


def _misses(given: PageInput) -> str:
    rows = [
        (
            item.name,
            item.missed,
            ", ".join(f"{count} × {name}" for name, count in item.called.items()) or "–",
        )
        for item in given.metrics.false_negatives
    ]
    return "<h2>What was missed, and what it was called</h2>" + _table(("class", "missed", "called"), rows, text=(2,))


def _abnormal(given: PageInput) -> str:
    abnormal = given.metrics.abnormal_vs_rest
    if abnormal is None:
        return "<h2>Abnormal against the rest</h2><p>The test tiles are all of one side: nothing to tell apart.</p>"
    rows = [
        ("sensitivity", f"{abnormal.sensitivity:.4f}", _range4(abnormal.sensitivity_interval)),
        ("specificity", f"{abnormal.specificity:.4f}", _range4(abnormal.specificity_interval)),
        ("AUROC", f"{abnormal.auroc:.4f}", _range4(abnormal.auroc_interval)),
    ]
    return (
        "<h2>Abnormal against the rest</h2>"
        f"<p>{abnormal.abnormal_tiles} of {given.metrics.tiles} test tiles are abnormal. A tile counts as called "
        "abnormal when its most probable class is.</p>" + _table(("", "value", "95 %"), rows)
    )


def _calibration(given: PageInput) -> str:
    calibration = given.calibration
    rows = [
        (name, f"{item.nll:.4f}", f"{item.brier:.4f}", f"{item.ece:.4f}", _range4(item.ece_interval),
         _range4(item.ece_if_calibrated))
        for name, item in (("val, before", calibration.val.before), ("val, after", calibration.val.after),
                           ("test, before", calibration.test.before), ("test, after", calibration.test.after))
    ]  # fmt: skip
    head = ("tiles", "NLL", "Brier", "ECE", "ECE 95 %", "ECE of a perfectly calibrated model")
    low, high = calibration.temperature_interval
    warnings = "".join(f'<p class="warning">{_text(_sentence(it))}</p>' for it in calibration_warnings(calibration))
    return (
        "<h2>Can its confidence be believed?</h2>"
        f"<p>A temperature of {calibration.temperature:.3f} (95 %: {low:.3f}–{high:.3f}), fitted on the "
        "validation tiles, divides the logits; it is part of the model. It changes no prediction, only how sure the "
        "model says it is.</p>"
        + warnings
        + _picture(given, "reliability", "Accuracy against confidence on test tiles; on the diagonal both agree.")
        + _table(head, rows)
    )


def _examples(given: PageInput) -> str:
    return "<h2>Some test tiles</h2>" + _picture(
        given, "examples", "Drawn at random. Above each: what it is, and what it was called; red where these differ."
    )


def _recipe(given: PageInput) -> str:
    record = given.record
    versions = {f"{name} version": text for name, text in record.versions.items()}
    rows = [(name.replace("_", " "), _plain(value)) for name, value in {**record.recipe, **versions}.items()]
    rows += record.environment.items()
    return "<h2>How to do it again</h2>" + _table(("setting", "value"), rows, text=(1,))


def _picture(given: PageInput, name: str, caption: str) -> str:
    data = base64.b64encode((given.pictures / f"{name}.png").read_bytes()).decode("ascii")
    text = _text(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    total: Iterable[Sequence[object]] = (),
    text: Sequence[int] = (),
) -> str:
    """`total` rows are set apart; columns in `text` hold words and are set to the left."""

    def line(cells: Sequence[object], *, kind: str) -> str:
        marks = [' class="text"' if column in text else "" for column in range(len(cells))]
        inner = "".join(f"<td{mark}>{_text(cell)}</td>" for mark, cell in zip(marks, cells, strict=True))
        return f"<tr{kind}>{inner}</tr>"

    marks = [' style="text-align: left"' if column in text else "" for column in range(len(head))]
    top = "".join(f"<th{mark}>{_text(name)}</th>" for mark, name in zip(marks, head, strict=True))
    body = [line(row, kind="") for row in rows] + [line(row, kind=' class="total"') for row in total]
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _text(value: object) -> str:
    # File and class names come from outside and must not become markup.
    return html.escape(str(value))


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _plain(value: object) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list) else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _range(interval: Sequence[float]) -> str:
    return "–".join(f"{100 * value:.1f}" for value in interval)


def _range4(interval: Sequence[float]) -> str:
    return "–".join(f"{value:.4f}" for value in interval)
