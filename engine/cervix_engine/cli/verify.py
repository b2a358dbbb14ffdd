"""`cervix-verify`: is this table as its run wrote it?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, option
from cervix_engine.words import counted

ALTERED = 1
SHOWN = 20


@click.command(cls=CervixCommand)
@click.argument("table", type=FILE)
@option("--tiles", type=click.Path(), help="Tiles to compare with the table's hashes, as named to cervix-batch.")
@option("--json", "as_json", is_flag=True, help="Print every finding as JSON on standard output.")
def main(table: Path, tiles: str | None, as_json: bool) -> int:
    """Find every edited, missing, doubled or moved row of a finished TABLE.

    Compares with what the run left beside it, TABLE.run.json and TABLE.rows; and with --tiles, the folder that was
    predicted with cervix-batch --hash, whether its tiles are still those. Exit codes: 0 as it was written, 1
    altered, 2 nothing to compare with.
    """
    from cervix_engine.run.verify import verify_table, verify_tiles

    findings = verify_table(table) + (verify_tiles(table, tiles) if tiles else [])
    if as_json:
        json.dump([asdict(finding) for finding in findings], sys.stdout, indent=2, allow_nan=False)
    for finding in findings[:SHOWN]:
        where = f"line {finding.line}: " if finding.line else ""
        click.echo(f"{where}{finding.kind}: {finding.message}", err=True)
    if len(findings) > SHOWN:
        click.echo(f"… and {len(findings) - SHOWN} more: --json lists all", err=True)
    click.echo(f"{table}: {counted(len(findings), 'finding') if findings else 'as the run wrote it'}", err=True)
    return ALTERED if findings else 0
