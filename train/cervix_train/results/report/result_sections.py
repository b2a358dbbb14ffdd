"""The sections on results: class by class, what was missed, how far confidence can be believed, some tiles."""

from __future__ import annotations

import numpy as np

from cervix_engine.report.pictures import data_uri
from cervix_train.results.calibration import calibration_warnings
from cervix_train.results.report.markup import percent, range4, range_percent, sentence, table, text
from cervix_train.results.report.page_input import PageInput
from cervix_train.results.report.plots import Example


def classes(given: PageInput) -> str:
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
    return "<h2>Class by class</h2>" + table(head, rows, total=totals) + given.figures(matrix)


def misses(given: PageInput) -> str:
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


def calibration(given: PageInput) -> str:
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
        + given.figures(("reliability", "Accuracy against confidence; on the diagonal both agree."))
        + table(head, rows)
    )


def examples(given: PageInput) -> str:
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
