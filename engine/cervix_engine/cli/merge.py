"""`cervix-merge`: the finished shards of one listing to one table."""

from __future__ import annotations

from pathlib import Path

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, option
from cervix_engine.words import counted

INCOMPLETE = 3


@click.command(cls=CervixCommand)
@click.argument("out", type=FILE)
@click.argument("shards", type=FILE, nargs=-1, required=True)
@option("--overwrite", is_flag=True, help="Replace a finished table.")
def main(out: Path, shards: tuple[Path, ...], overwrite: bool) -> int:
    """Join all SHARDS, tables that cervix-batch --shard wrote, in any order, into the table OUT.

    OUT is, byte for byte, the table of an undivided run, whatever formats the shards have. A shard that is missing,
    doubled, altered, not finished or of another run is named, and nothing is written. Exit codes: 0 done, 3 done but
    some tiles failed, 1 failed, 2 wrong usage.
    """
    from cervix_engine.cli.shared.logs import command_line
    from cervix_engine.run.assembly.merge import merge_shards

    done = merge_shards(out, shards, overwrite=overwrite, command=command_line())
    kinds = ", ".join(f"{count} {kind}" for kind, count in done.failures.items())
    failed = f"{done.failed} failed" + (f" ({kinds})" if kinds else "")
    click.echo(
        f"{counted(len(done.shards), 'shard')}, {counted(done.found, 'tile')}: {done.ok} predicted, {failed}", err=True
    )
    click.echo(f"table: {out}", err=True)
    return INCOMPLETE if done.failed else 0
