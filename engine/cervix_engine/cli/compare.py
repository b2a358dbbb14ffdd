"""`cervix-compare`: what changed between two tables."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, option

if TYPE_CHECKING:
    from cervix_engine.table.compare import Change, TableComparison

SHOWN = 20


@click.command(cls=CervixCommand)
@click.argument("new", type=FILE)
@click.argument("old", type=FILE)
@option("--labels", type=FILE, help="CSV file with path,label: adds which table is right, and McNemar's test.")
@option("-o", "--out", type=FILE, help="CSV file for every change, such as changes.csv.")
@option("--overwrite", is_flag=True, help="Replace an existing file.")
@option("--json", "as_json", is_flag=True, help="Print the counts as JSON on standard output.")
def main(new: Path, old: Path, labels: Path | None, out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Compare the tables NEW and OLD of the same tiles: every decision that changed, with its margins.

    Exit codes: 0 done, whatever has changed; 1 failed; 2 wrong usage.
    """
    from cervix_engine.files import require_free
    from cervix_engine.table.compare import compare, read_labels, write_changes
    from cervix_engine.table.reader import Table

    if out is not None:
        require_free(out, overwrite=overwrite)
    labelled = read_labels(labels) if labels else {}
    comparison = compare(Table.open(new), Table.open(old), labels=labelled)
    if out is not None:
        write_changes(out, comparison.changes)
    if as_json:
        click.echo(json.dumps(comparison.to_json(), indent=2))
    else:
        click.echo("\n".join(_lines(comparison, labels=len(labelled))))


def _lines(comparison: TableComparison, *, labels: int) -> list[str]:
    changes = sorted(comparison.changes, key=lambda change: -change.margin)
    lines = [
        f"{comparison.tiles} tiles in both tables; {len(changes)} decision{'s' * (len(changes) != 1)} changed"
        f"{_kinds(changes)}; largest difference of a probability {comparison.max_absdiff:.6f}"
    ]
    if comparison.only_new or comparison.only_old:
        lines.append(f"{comparison.only_new} tiles only in the new table, {comparison.only_old} only in the old one")
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
        f"{total} of {labels} labels match a tile in both tables",
        f"of {total} labelled tiles, new is right on {new} ({new / total:.2%}), old on {old} ({old / total:.2%})",
        f"only new right: {right[True, False]}, only old right: {right[False, True]}; "
        f"McNemar's exact test p {f'= {comparison.p_value:.3g}' if comparison.p_value else '< 1e-300'}",
    ]


def _margin(margin: float | None) -> str:
    return "none" if margin is None else f"{margin:.3f}"
