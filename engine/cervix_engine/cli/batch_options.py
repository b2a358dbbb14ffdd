"""The options of `cervix-batch`, in the order in which `--help` shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cervix_engine.backends.register import runtime_names
from cervix_engine.cli.shared.device_option import device_option
from cervix_engine.cli.slide_options import SLIDE_OPTIONS

_FILE = click.Path(path_type=Path)


class IntegerOrAuto(click.IntRange):
    """A whole number in a range, or the word `auto`."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


class ShardOption(click.ParamType[Any]):
    """One of several parts of the tiles, such as `3/8`."""

    name = "k/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from cervix_engine.errors import UsageError
        from cervix_engine.run.assembly.part import Part

        try:
            return Part.parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


_OPTIONS = (
    click.option("-o", "--out", type=_FILE, required=True, help="Table to write: .csv, .csv.gz, .jsonl or .parquet."),
    click.option("--model", type=_FILE, help="Bundle to run. [default: $CERVIX_MODEL, else models/cervix]"),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
        default="auto",
        show_default=True,
        help="Precision; auto takes the fastest certified one in floating point on this machine, else fp32.",
    ),
    click.option("--fp16", "precision", flag_value="fp16", help="Same as --precision fp16."),
    click.option("--int8", "precision", flag_value="int8", help="Same as --precision int8."),
    click.option(
        "--backend",
        type=click.Choice(runtime_names()),
        help="Run on this runtime only. [default: as --precision chooses]",
    ),
    device_option,
    click.option(
        "-b",
        "--batch-size",
        type=IntegerOrAuto(1, 4096),
        help="Tiles per batch; auto finds a size by a short measurement. [default: 32]",
    ),
    click.option(
        "-j",
        "--workers",
        type=IntegerOrAuto(1, 256),
        default="auto",
        show_default=True,
        help="Decode processes; auto keeps as many as feed the model.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace a finished table and other existing outputs."),
    click.option(
        "--resume/--no-resume", default=True, show_default=True, help="Go on with a partial run, or discard it."
    ),
    click.option(
        "--retry-failures",
        is_flag=True,
        help="Predict the failed tiles of a finished table again; its other rows stay as they are.",
    ),
    click.option(
        "--update",
        is_flag=True,
        help="Bring a finished table up to date: predict only tiles that are new or changed, drop rows of those that "
        "are gone.",
    ),
    click.option(
        "--shard",
        type=ShardOption(),
        help="Predict only the K-th of N parts of the tiles, such as 3/8; cervix-merge joins the finished tables.",
    ),
    click.option(
        "--ray",
        metavar="auto|ADDRESS",
        help="Predict on a Ray cluster: that of this machine, or the one whose head node is at ADDRESS.",
    ),
    click.option(
        "--max-failures",
        default="10%",
        show_default=True,
        metavar="COUNT|SHARE%",
        help="Stop, resumable, when more tiles than this fail; a share counts from the 1,000th tile on.",
    ),
    click.option(
        "--quality",
        "judge_quality",
        is_flag=True,
        help="Add a column quality, which flags tiles that look blank, blurred, dark, off_colour and so on.",
    ),
    click.option(
        "--abnormal-at",
        type=click.FloatRange(0, 1, min_open=True),
        help="Call a tile abnormal from this probability on (column abnormal). [default: the bundle's]",
    ),
    click.option(
        "--review-below",
        type=click.FloatRange(0, 1),
        help="Ask a person to see tiles below this confidence (column review). [default: the bundle's]",
    ),
    click.option(
        "--review-within",
        type=click.FloatRange(0, 1),
        help="Likewise tiles whose probability lies this close to --abnormal-at. [default: the bundle's]",
    ),
    click.option("--hash", "hash_tiles", is_flag=True, help="Add a column sha256: the digest of each tile's bytes."),
    click.option(
        "--coords",
        metavar="PATTERN|FILE.csv",
        help="Where tiles lie: a pattern of names, such as '{slide}_x{x}_y{y}', or a CSV file with path,minx,miny.",
    ),
    click.option(
        "--slide",
        metavar="PATTERN|FILE.csv",
        help="Which slide a tile is of: a pattern of paths, such as '{slide}/tiles/*', or a CSV file with "
        "path,slide_id and, where wanted, minx,miny. [default: the tile's folder below TILES]",
    ),
    click.option("--follow-links", is_flag=True, help="Follow links that lead out of TILES, to files and to folders."),
    *SLIDE_OPTIONS,
    click.option("--summary", type=_FILE, help="Also write a CSV file with a line for each slide."),
    click.option("--geojson", type=_FILE, metavar="DIR", help="Also write GeoJSON for QuPath, a file for each slide."),
    click.option("--report", type=_FILE, help="Also write a page for people, such as report.html."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Count the tiles, predict a few, print how long and how large a run would be; write nothing.",
    ),
    click.option("--require-parity", is_flag=True, help="Refuse to run without a certificate (exit code 4)."),
    click.option("--expect-digest", metavar="SHA256", help="Refuse a bundle with another digest."),
    click.option("--log-file", type=_FILE, help="File for details of the run, names of tiles included."),
    click.option("--json", "as_json", is_flag=True, help="Print events on standard output, one JSON object per line."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("-v", "--verbose", is_flag=True, help="Also print how long each stage was busy and waited."),
)


def batch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the command's function with all of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
