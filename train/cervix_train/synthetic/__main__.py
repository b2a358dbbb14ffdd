"""`python -m cervix_train.synthetic OUT --tiles 200 --slides 8`: draws a data set."""

from __future__ import annotations

from pathlib import Path

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, option
from cervix_engine.errors import UsageError
from cervix_engine.words import counted
from cervix_train.synthetic.datasets import write_drawn, write_slides


@click.command(cls=CervixCommand)
@click.argument("out", type=FILE)
@option("--tiles", type=click.IntRange(1), default=200, help="Number of tiles to draw.")
@option("--seed", type=click.IntRange(0), default=0, help="Seed of the drawing: the same seed gives the same tiles.")
@option("--flat", is_flag=True, help="Draw into one folder without classes, and write manifest.csv beside it.")
@option(
    "--slides",
    type=click.IntRange(1),
    help="Number of slides to lay the tiles on: a folder each, tiles named by location, and a manifest.csv in which a "
    "slide is a group.",
)
def main(out: Path, tiles: int, seed: int, flat: bool, slides: int | None) -> None:
    """Draw a data set of synthetic cells into the folder OUT: by default, one folder of tiles per class."""
    if slides is None:
        write_drawn(out, tiles=tiles, seed=seed, flat=flat)
        click.echo(f"drew {counted(tiles, 'tile')} into {out}", err=True)
        return
    if flat:
        raise UsageError("--flat and --slides are two ways to lay tiles out: choose one")
    if slides > tiles:
        raise UsageError(f"--slides {slides}: --tiles {tiles} are fewer")
    write_slides(out, tiles=tiles, slides=slides, seed=seed)
    click.echo(f"drew {counted(tiles, 'tile')} on {counted(slides, 'slide')} into {out}", err=True)


if __name__ == "__main__":
    main()
