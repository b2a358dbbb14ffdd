"""`cervix-report`: a finished table as a page, a summary by slide, or QuPath's objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, coords_option, option
from cervix_engine.words import counted

if TYPE_CHECKING:
    from cervix_engine.report.findings import Findings
    from cervix_engine.report.make import ReportConfig


@click.command(cls=CervixCommand)
@click.argument("table", type=FILE)
@option("-o", "--out", type=FILE, help="Page to write, such as report.html.")
@option("--tiles", type=click.Path(), help="The table's tiles, as named to cervix-batch: adds pictures.")
@option("--summary", type=FILE, help="CSV file with a line for each slide, such as slides.csv.")
@option("--geojson", type=FILE, metavar="DIR", help="Folder for GeoJSON for QuPath, a file for each slide.")
@coords_option
@option("--model", type=FILE, help="Bundle that made the table: adds its certificate and calibration.")
@option("--top", type=click.IntRange(0, 200), default=48, help="Tiles in each gallery.")
@option("--heatmaps", is_flag=True, help="Beside each picture, where the network found what speaks for its class.")
@option("--similar", is_flag=True, help="Below each picture, the nearest of the training tiles in the bundle.")
@option("--overwrite", is_flag=True, help="Replace existing files.")
def main(
    table: Path,
    out: Path | None,
    tiles: str | None,
    summary: Path | None,
    geojson: Path | None,
    coords: str | None,
    model: Path | None,
    top: int,
    heatmaps: bool,
    similar: bool,
    overwrite: bool,
) -> None:
    """Make of TABLE, which cervix-batch wrote, a page for people (--out), a line for each slide (--summary), or
    QuPath's objects (--geojson).

    The page is one file that loads nothing from anywhere. All of it is research use only, and no diagnosis. Exit
    codes: 0 done, 1 failed, 2 wrong usage.
    """
    from cervix_engine.report.make import ReportConfig, make_report

    config = ReportConfig(
        table=table,
        out=out,
        tiles=tiles,
        summary=summary,
        geojson=geojson,
        coords=coords,
        model=model,
        top=top,
        heatmaps=heatmaps,
        similar=similar,
        overwrite=overwrite,
    )
    _summarise(make_report(config), config)


def _summarise(findings: Findings, config: ReportConfig) -> None:
    located = sum(len(points) for points in findings.points.values())
    click.echo(
        f"{counted(findings.tiles, 'tile')}: {findings.predicted} predicted, {findings.failed} failed, on "
        f"{counted(len(findings.slides), 'slide')}; {located} with a location on their slide",
        err=True,
    )
    for name, path in (("report", config.out), ("summary", config.summary), ("GeoJSON", config.geojson)):
        if path is not None:
            click.echo(f"{name}: {path}", err=True)
