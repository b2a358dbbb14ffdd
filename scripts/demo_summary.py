"""Joins a table of `cervix-batch` with the manifest of the tiles it was made from, and says how many are right.

Usage: python scripts/demo_summary.py preds.csv unseen/manifest.csv
"""

from __future__ import annotations

import csv
from pathlib import Path

import click

from cervix_engine.table.names import unescape_name


@click.command()
@click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(table: Path, manifest: Path) -> None:
    """Print the accuracy of TABLE on the labels of MANIFEST; a tile without its one row is an error."""
    labels = {row["path"]: row["label"] for row in _rows(manifest)}
    rows = [(unescape_name(row["path"]), row) for row in _rows(table)]
    if sorted(path for path, _ in rows) != sorted(labels):
        raise click.ClickException(f"{table} does not have exactly one row for each tile of {manifest}")
    for label in sorted(set(labels.values())):
        _print_accuracy(label, [row["pred"] == label for path, row in rows if labels[path] == label])
    _print_accuracy("all", [row["pred"] == labels[path] for path, row in rows])
    failed = sum(row["status"] == "failed" for _, row in rows)
    click.echo(f"{len(rows)} tiles, {failed} failed; a failed tile counts as wrong. These are drawings, not cells.")
    click.echo(f"table: {table}")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _print_accuracy(name: str, right: list[bool]) -> None:
    click.echo(f"{name:<12} {sum(right):>5} of {len(right):>5} right  {sum(right) / len(right):7.1%}")


if __name__ == "__main__":
    main()
