"""Writes the training report page, `report.html`: a whole training in one file, for a person to read.

Pictures are inside the file, no script runs and nothing is fetched, so it can be sent and kept. It is set in the tile
report's own style: on a phone, in the dark and on paper.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cervix_engine.version import __version__
from cervix_train.results.report.decision_sections import abnormal, decisions
from cervix_train.results.report.markup import moment, percent, range_percent, text
from cervix_train.results.report.page_input import PageInput
from cervix_train.results.report.result_sections import calibration, classes, examples, misses
from cervix_train.results.report.training_sections import copies, data, folds, learning, recipe


def write_page(path: Path, given: PageInput) -> None:
    """Write the page."""
    sections = (decisions, abnormal, classes, misses, calibration, learning, folds, data, copies, examples, recipe)
    told = filter(None, (section(given) for section in sections))
    panels = "\n".join(f'<section class="panel">{section}</section>' for section in told)
    style = "".join(
        (resources.files(package) / name).read_text(encoding="utf-8")
        for package, name in (("cervix_engine.report", "style.css"), ("cervix_train.results.report", "page.css"))
    )
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
        f"<p>Computed in {given.precision}{when}.</p></header>"
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
