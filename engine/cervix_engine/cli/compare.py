"""`cervix-compare`: what changed between two tables."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, option
from cervix_engine.words import agreeing, counted

if TYPE_CHECKING:
    from cervix_engine.contract import Category
    from cervix_engine.table.compare import Calls, Change, TableComparison
    from cervix_engine.table.reader import Table
    from cervix_engine.table.summary import Share

SHOWN = 20


@click.command(cls=CervixCommand)
@click.argument("new", type=FILE)
@click.argument("old", type=FILE)
@option(
    "--labels",
    type=FILE,
    help="CSV file with path,label: adds which table is right, McNemar's test, and the sensitivity and specificity of "
    "the operating points.",
)
@option("--model", type=FILE, help="Bundle that says which classes are abnormal, where the tables do not.")
@option("-o", "--out", type=FILE, help="CSV file for every change, such as changes.csv.")
@option("--overwrite", is_flag=True, help="Replace an existing file.")
@option("--json", "as_json", is_flag=True, help="Print the counts as JSON on standard output.")
def main(
    new: Path, old: Path, labels: Path | None, model: Path | None, out: Path | None, overwrite: bool, as_json: bool
) -> None:
    """Compare the tables NEW and OLD of the same tiles: every decision that changed, with its margins.

    Exit codes: 0 done, whatever has changed; 1 failed; 2 wrong usage.
    """
    from cervix_engine.errors import UsageError
    from cervix_engine.outputs.places import require_free
    from cervix_engine.run.assembly.beside import files_of_table
    from cervix_engine.table.compare import compare, read_labels, write_changes
    from cervix_engine.table.reader import Table

    if out is not None:
        inputs = (*files_of_table(new), *files_of_table(old), labels, model)
        require_free(out, overwrite=overwrite, inputs=inputs)
    if model is not None and labels is None:
        raise UsageError("--model says which labels are abnormal: name them with --labels")
    labelled = read_labels(labels) if labels else {}
    tables = Table.open(new), Table.open(old)
    categories = _categories(tables, model) if labels else ()
    comparison = compare(*tables, labels=labelled, categories=categories)
    if out is not None:
        write_changes(out, comparison.changes)
    if as_json:
        click.echo(json.dumps(comparison.to_json(), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(_lines(comparison, labels=len(labelled))))


def _categories(tables: tuple[Table, Table], model: Path | None) -> tuple[Category, ...]:
    """Of the classes, where a table has decisions to judge; none, with a warning, where they cannot be known."""
    from cervix_engine.bundle.bundle import Bundle
    from cervix_engine.errors import UsageError

    decided = [table for table in tables if table.is_decided]
    contract = Bundle.open(model).contract if model else None
    try:
        return decided[0].categories(contract) if decided else ()
    except UsageError as error:
        if model:
            raise
        click.echo(f"warning: what the operating points call abnormal is not judged: {error}", err=True)
        return ()


def _lines(comparison: TableComparison, *, labels: int) -> list[str]:
    changes = sorted(comparison.changes, key=lambda change: -change.margin)
    lines = [
        f"{counted(comparison.tiles, 'tile')} in both tables; {counted(len(changes), 'decision')} changed"
        f"{_kinds(changes)}; largest difference of a probability {comparison.max_absdiff:.6f}"
    ]
    if comparison.only_new or comparison.only_old:
        only_new = counted(comparison.only_new, "tile")
        lines.append(f"{only_new} only in the new table, {comparison.only_old} only in the old one")
    for change in changes[:SHOWN]:
        label = f"   truly {change.label}" if change.label else ""
        margins = f"{_margin(change.old_margin)} -> {_margin(change.new_margin)}"
        what = f"{change.kind} " if change.kind in ("category", "abnormal", "review") else ""
        lines.append(f"  {change.path}: {what}{change.old} -> {change.new}   margin {margins}{label}")
    if len(changes) > SHOWN:
        lines.append(f"  … and {len(changes) - SHOWN} more with smaller margins: --out writes all")
    return [*lines, *_label_lines(comparison, labels)]


def _kinds(changes: list[Change]) -> str:
    """How many of each kind, where an operating point makes several."""
    kinds = Counter(change.kind for change in changes)
    if not kinds.keys() & {"category", "abnormal", "review"}:
        return ""
    return f" ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})"


def _label_lines(comparison: TableComparison, labels: int) -> list[str]:
    right, total = comparison.right, comparison.labelled
    if comparison.p_value is None:
        return []
    new, old = right[True, True] + right[True, False], right[True, True] + right[False, True]
    return [
        f"{total} of {counted(labels, 'label')} {agreeing(total, 'matches', 'match')} a tile in both tables",
        f"of {counted(total, 'labelled tile')}, new is right on {new} ({new / total:.2%}), old on {old} "
        f"({old / total:.2%})",
        f"only new right: {right[True, False]}, only old right: {right[False, True]}; "
        f"McNemar's exact test p {f'= {comparison.p_value:.3g}' if comparison.p_value else '< 1e-300'}",
        *_calls_lines(comparison),
    ]


def _calls_lines(comparison: TableComparison) -> list[str]:
    """What each table's operating point is worth on the labelled tiles."""
    both = (("new", comparison.new_calls), ("old", comparison.old_calls))
    lines = [f"  {name}: {_worth(calls)}" for name, calls in both if calls]
    head = "abnormal by the operating point, against the labels (95 %, taking tiles as independent):"
    return [head, *lines] if lines else []


def _worth(calls: Calls) -> str:
    return (
        f"sensitivity {_share(calls.sensitivity)} of {counted(calls.abnormal, 'abnormal tile')}, "
        f"specificity {_share(calls.specificity)} of {counted(calls.others, 'other')}"
    )


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.1%} ({low:.1%} to {high:.1%})" if share.total else "unknown"


def _margin(margin: float | None) -> str:
    return "none" if margin is None else f"{margin:.3f}"
