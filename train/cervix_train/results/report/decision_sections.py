"""The sections on decisions: what the operating point promises and keeps, and abnormal against the rest."""

from __future__ import annotations

from cervix_engine.contract import OperatingPoint
from cervix_train.results.operating_point import SplitWorth, Worth
from cervix_train.results.report.markup import percent, range4, range_percent, table
from cervix_train.results.report.page_input import PageInput


def decisions(given: PageInput) -> str:
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


def abnormal(given: PageInput) -> str:
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
        + given.figures(
            ("roc", "Sensitivity against false positives; the dot is the operating point, the band holds 95 %."),
            ("precision_recall", "Precision against sensitivity, with 95 % bands."),
        )
        + f"<p>{abnormal.abnormal_tiles} of {given.metrics.tiles} {given.tested} are abnormal. Without an operating "
        "point, a tile would count as called abnormal when its most probable class is:</p>"
        + table(("", "value", "95 %"), rows)
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
