"""Writes the training report page, `report.html`: a whole training in one file, for a person to read.

Pictures are inside the file, no script runs and nothing is fetched, so it can be sent and kept. It is set in the tile
report's own style: on a phone, in the dark and on paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from cervix_engine.contract import OperatingPoint, TileClass
from cervix_engine.report.pictures import data_uri
from cervix_engine.version import __version__
from cervix_train.data.distribution import IMBALANCED
from cervix_train.results.calibration import Calibration, calibration_warnings
from cervix_train.results.copy_cost import CopyReport
from cervix_train.results.fold_table import CrossValidation
from cervix_train.results.metrics import Metrics
from cervix_train.results.operating_point import DecisionReport, SplitWorth, Worth
from cervix_train.results.record import TrainingRecord
from cervix_train.results.report.markup import moment, percent, plain, range4, range_percent, sentence, table, text
from cervix_train.results.report.plots import Example
from cervix_train.results.report.sections import copies_section, folds_section

_STYLE = """
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.plots figure { max-width: 36rem; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figcaption { color: var(--soft); }
.figure small { display: block; }
.scroll { max-height: none; margin: .6rem 0; }
.scroll table { width: auto; min-width: 60%; }
.scroll thead th { position: static; white-space: nowrap; }
.scroll tbody th { overflow-wrap: normal; }
td small { display: block; }
tr.chosen > *, tr.total > * { font-weight: 650; }
.card.wrong { border-top-color: var(--abnormal); }
p { max-width: 52rem; }
@media (max-width: 46rem) { .scroll table { min-width: 100%; } }
@media print {
  body { background: none; font-size: 12px; }
  .panel { break-inside: auto; } .scroll { overflow: visible; } figure, tr, .card { break-inside: avoid; }
}
"""


@dataclass(frozen=True, slots=True)
class PageInput:
    """What the page tells.

    Attributes:
        metrics: of the test split.
        decisions: the operating point; None where none could be chosen.
        classes: with their display names.
        pictures: an `<svg>` element by its name.
        examples: some test tiles.
        copies: None where nobody looked for them.
        folds: of a cross-validation, whose answers out of fold the metrics are of; None where a split was tested.
    """

    metrics: Metrics
    calibration: Calibration
    decisions: DecisionReport | None
    record: TrainingRecord
    classes: Sequence[TileClass]
    pictures: Mapping[str, str]
    examples: Sequence[Example] = ()
    copies: CopyReport | None = None
    folds: CrossValidation | None = None

    @property
    def tested(self) -> str:
        """What the metrics are of, in words."""
        return "tiles, answered out of fold," if self.folds else "test tiles"

    @property
    def names(self) -> dict[str, str]:
        """Display names, by name."""
        return {item.name: item.display_name for item in self.classes}


def write_page(path: Path, given: PageInput) -> None:
    """Write the page."""
    sections = (
        _decisions,
        _abnormal,
        _classes,
        _misses,
        _calibration,
        _learning,
        _folds,
        _data,
        _copies,
        _examples,
        _recipe,
    )
    told = filter(None, (section(given) for section in sections))
    panels = "\n".join(f'<section class="panel">{section}</section>' for section in told)
    style = (resources.files("cervix_engine.report") / "style.css").read_text(encoding="utf-8") + _STYLE
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>Training report</title><style>{style}</style></head>\n<body>{_head(given)}\n<main>{_summary(given)}\n"
        f"{panels}\n</main><footer>Made by cervix {__version__}. Loads nothing from anywhere.</footer></body></html>\n"
    )
    # Names of files, in the command line too, may hold bytes that are not UTF-8.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def _head(given: PageInput) -> str:
    record, metrics = given.record, given.metrics
    tiles = sum(record.distribution.totals.splits)
    groups = f" of {metrics.groups} separate groups" if metrics.groups else ""
    how = f"test tiles{groups} that had no part in training"
    if given.folds:
        how = f"tiles{groups}, each answered by a model that learnt from other groups"
    run = record.run
    when = f", {moment(run.started_at)} to {moment(run.ended_at)} ({run.seconds:,.0f} s)" if run else ""
    return (
        "<header><h1>Training report</h1>"
        '<p class="warning"><strong>Research use only.</strong> This model is no diagnostic device.</p>'
        f"<p>{text(record.recipe.get('backbone', ''))} on {tiles:,} labelled tiles, measured on "
        f"{metrics.tiles:,} {how}.</p>"
        f"<p>Computed in {_precision(record)}{when}.</p></header>"
    )


def _summary(given: PageInput) -> str:
    metrics = given.metrics
    cards = [
        ("accuracy", metrics.accuracy, metrics.accuracy_interval),
        ("macro F1", metrics.macro.f1, metrics.macro_f1_interval),
    ]
    if given.decisions and given.decisions.test:
        chosen = given.decisions.test.chosen
        cards.append(("sensitivity, abnormal", chosen.sensitivity, chosen.sensitivity_interval))
        cards.append(("specificity, abnormal", chosen.specificity, chosen.specificity_interval))
    elif abnormal := metrics.abnormal_vs_rest:
        cards.append(("sensitivity, abnormal", abnormal.sensitivity, abnormal.sensitivity_interval))
        cards.append(("specificity, abnormal", abnormal.specificity, abnormal.specificity_interval))
    boxes = "".join(
        f'<div class="figure"><b>{percent(value)}</b><span>{text(name)}</span>'
        f"<small>95 %: {range_percent(interval)}</small></div>"
        for name, value, interval in cards
    )
    return (
        f'<section class="tiles" aria-label="Figures">{boxes}</section>'
        f'<p class="note">Of the {given.tested.rstrip(",")}. Intervals come from resampling whole groups; those of '
        "shares are at each end the wider of that and Wilson’s.</p>"
    )


def _decisions(given: PageInput) -> str:
    head = "<h2>The operating point</h2>"
    report = given.decisions
    if report is None:
        return head + "<p>None was chosen: the validation tiles, or the classes, are all of one side.</p>"
    point, (low, high) = report.point, report.abnormal_at_interval
    promise = report.val.chosen
    of = given.tested if given.folds else "validation tiles"
    after = " The test tiles were looked at after the choice." if report.test else ""
    kept = _promise(report.test.chosen) if report.test else "No test tiles tell whether it keeps that."
    return (
        head + f"<p>A tile is called abnormal from a probability of <b>{point.abnormal_at:.6f}</b> on "
        f"(95 %: {low:.3f} to {high:.3f}). That was chosen on the {report.val.tiles:,} {of} alone, as the "
        f"largest value that finds {percent(promise.aim)} of their {report.val.abnormal_tiles:,} abnormal cells. "
        f"{_review(point)}: at most {percent(report.review_share)} of the {of.rstrip(',')}.</p><p>{kept}</p>"
        + "".join(
            f"<h3>{title}</h3>{_thresholds(split)}"
            for title, split in ((f"On {of.rstrip(',')}", report.val), ("On test tiles", report.test))
            if split is not None
        )
        + f'<p class="note">Each threshold is chosen on {of.rstrip(",")} for the sensitivity in its first column; the '
        "operating point stands first. The rest are the tiles that nobody must see: how many of them are rightly "
        f"called abnormal or not, and how many have the right class.{after}</p>"
    )


def _review(point: OperatingPoint) -> str:
    if not point.review_below and not point.review_within:
        return "No tile must be seen by a person"
    return (
        f"A person must see a tile whose confidence is below {point.review_below:.6f}, or whose probability of being "
        f"abnormal is closer than {point.review_within:.6f} to that value"
    )


def _promise(chosen: Worth) -> str:
    return (
        f"On test tiles it finds <b>{percent(chosen.sensitivity)}</b> of the abnormal cells "
        f"(95 %: {range_percent(chosen.sensitivity_interval)}), leaves {percent(chosen.specificity)} of the others "
        f"alone ({range_percent(chosen.specificity_interval)}), and asks a person to see {percent(chosen.review)} "
        f"({range_percent(chosen.review_interval)})."
    )


def _thresholds(split: SplitWorth) -> str:
    head = ("chosen for", "threshold", "sensitivity", "specificity", "to review", "rest: right call", "right class")
    rows = [
        (
            percent(item.aim),
            f"{item.abnormal_at:.4f}",
            *(
                (percent(getattr(item, name)), range_percent(getattr(item, f"{name}_interval")))
                for name in ("sensitivity", "specificity", "review", "rest_called_right", "rest_class_right")
            ),
        )
        for item in split.thresholds
    ]
    return table(head, rows, chosen=0)


def _abnormal(given: PageInput) -> str:
    abnormal = given.metrics.abnormal_vs_rest
    if abnormal is None:
        return "<h2>Abnormal against the rest</h2><p>The tiles are all of one side: nothing to tell apart.</p>"
    rows = [
        ("sensitivity", f"{abnormal.sensitivity:.4f}", range4(abnormal.sensitivity_interval)),
        ("specificity", f"{abnormal.specificity:.4f}", range4(abnormal.specificity_interval)),
        ("AUROC", f"{abnormal.auroc:.4f}", range4(abnormal.auroc_interval)),
    ]
    return (
        "<h2>Abnormal against the rest</h2>"
        + _pictures(
            given,
            ("roc", "Sensitivity against false positives; the dot is the operating point, the band holds 95 %."),
            ("precision_recall", "Precision against sensitivity, with 95 % bands."),
        )
        + f"<p>{abnormal.abnormal_tiles} of {given.metrics.tiles} {given.tested} are abnormal. Without an operating "
        "point, a tile would count as called abnormal when its most probable class is:</p>"
        + table(("", "value", "95 %"), rows)
    )


def _classes(given: PageInput) -> str:
    metrics, names = given.metrics, given.names
    rows = [
        (
            names[item.name],
            percent(item.precision),
            percent(item.recall),
            range_percent(item.recall_interval),
            percent(item.f1),
            item.tiles,
        )
        for item in metrics.per_class
    ]
    totals = [
        (name, percent(average.precision), percent(average.recall), "", percent(average.f1), metrics.tiles)
        for name, average in (("macro", metrics.macro), ("weighted", metrics.weighted))
    ]
    head = ("class", "precision", "recall", "95 %", "F1", "tiles")
    matrix = ("confusion_matrix", "Rows are the true classes, columns what the tiles were called.")
    return "<h2>Class by class</h2>" + table(head, rows, total=totals) + _pictures(given, matrix)


def _misses(given: PageInput) -> str:
    names = given.names
    rows = [
        (
            names[item.name],
            item.missed,
            ", ".join(f"{count} × {names[name]}" for name, count in item.called.items()) or "–",
        )
        for item in given.metrics.false_negatives
    ]
    return "<h2>What was missed, and what it was called</h2>" + table(("class", "missed", "called"), rows, words=(2,))


def _calibration(given: PageInput) -> str:
    calibration = given.calibration
    val, test = ("out of fold", "by each fold’s own temperature") if given.folds else ("val", "test")
    rows = [
        (name, f"{item.nll:.4f}", f"{item.brier:.4f}", f"{item.ece:.4f}", range4(item.ece_interval),
         range4(item.ece_if_calibrated))
        for name, item in ((f"{val}, before", calibration.val.before), (f"{val}, after", calibration.val.after),
                           (f"{test}, before", calibration.test.before), (f"{test}, after", calibration.test.after))
    ]  # fmt: skip
    head = ("tiles", "NLL", "Brier", "ECE", "ECE 95 %", "ECE of a perfectly calibrated model")
    low, high = calibration.temperature_interval
    warnings = "".join(f'<p class="warning">{text(sentence(it))}</p>' for it in calibration_warnings(calibration))
    return (
        "<h2>Can its confidence be believed?</h2>"
        f"<p>A temperature of {calibration.temperature:.3f} (95 %: {low:.3f} to {high:.3f}), fitted on the "
        f"{given.tested if given.folds else 'validation tiles,'} divides the logits; it is part of the model. It "
        "changes no prediction, only how sure the model says it is.</p>"
        + warnings
        + _pictures(given, ("reliability", "Accuracy against confidence; on the diagonal both agree."))
        + table(head, rows)
    )


def _learning(given: PageInput) -> str:
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
    return "<h2>Learning</h2>" + _pictures(given, curves) + table(head, rows)


def _data(given: PageInput) -> str:
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
        + _pictures(given, ("distribution", "Tiles of each class in each split."))
        + table(("class", "train", "val", "test", "all"), rows, total=[total])
        + omitted
    )


def _folds(given: PageInput) -> str:
    return folds_section(given.folds) if given.folds else ""


def _copies(given: PageInput) -> str:
    return copies_section(given.copies) if given.copies and given.copies.found else ""


def _examples(given: PageInput) -> str:
    names = given.names

    def card(example: Example) -> str:
        right = example.true == example.predicted
        called = "" if right else f"<span>called {text(names[example.predicted])}</span>"
        picture = data_uri("jpeg", np.ascontiguousarray(example.pixels[..., ::-1]))
        return (
            f'<li class="card{"" if right else " wrong"}"><img alt="a tile" src="{picture}">'
            f"<strong>{text(names[example.true])}</strong>{called}<span>confidence {percent(example.confidence)}</span>"
            "</li>"
        )

    cards = "".join(map(card, given.examples))
    return (
        f'<h2>Some {given.tested.rstrip(",")}</h2><p class="note">Drawn at random. Below each what it is, what it was '
        f'called where that differs, and how sure the model was.</p><ol class="cards">{cards}</ol>'
    )


def _recipe(given: PageInput) -> str:
    record = given.record
    versions = {f"{name} version": version for name, version in record.versions.items()}
    rows = [(name.replace("_", " "), plain(value)) for name, value in {**record.recipe, **versions}.items()]
    rows += record.environment.items()
    facts = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in (*_run(record), *rows))
    return f'<h2>How to do it again</h2><dl class="facts">{facts}</dl>'


def _run(record: TrainingRecord) -> list[tuple[str, str]]:
    facts = [("precision", _precision(record))]
    if run := record.run:
        times = {"started": moment(run.started_at), "ended": moment(run.ended_at), "took": f"{run.seconds:,.1f} s"}
        facts += times.items()
        facts += [("host", run.host), ("command", run.command or "called from Python")]
    return facts


def _precision(record: TrainingRecord) -> str:
    parts = {"mixed_precision": "stages on pixels", "bf16_features": "training tiles’ features"}
    in_bf16 = [words for name, words in parts.items() if record.recipe.get(name)]
    return f"FP32, {' and '.join(in_bf16)} in BF16" if in_bf16 else "FP32"


def _pictures(given: PageInput, *pictures: tuple[str, str]) -> str:
    """The (name, caption) of those that there are, side by side where there is room."""
    figures = "".join(
        f'<figure role="img" aria-label="{text(caption)}">{given.pictures[name]}'
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for name, caption in pictures
        if name in given.pictures
    )
    return f'<div class="plots">{figures}</div>'
