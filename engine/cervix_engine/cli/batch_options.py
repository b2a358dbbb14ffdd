"""The options of `cervix-batch`, in the order in which `--help` shows them."""

from __future__ import annotations

from typing import Any

import click

from cervix_engine.backends.register import runtime_names
from cervix_engine.cli.shared.options import (
    FILE,
    coords_option,
    device_option,
    expect_digest_option,
    model_option,
    option,
    options,
    precision_option,
)
from cervix_engine.cli.slide_options import slide_options
from cervix_engine.run.sizes import BATCH_SIZES, WORKERS


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


batch_options = options(
    option(
        "-o",
        "--out",
        type=FILE,
        required=True,
        help="Table to write: .csv, .csv.gz, .jsonl or .parquet; or a folder for many Parquet files, such as preds/.",
    ),
    model_option("run"),
    precision_option,
    option("--fp16", "precision", flag_value="fp16", help="Same as --precision fp16."),
    option("--int8", "precision", flag_value="int8", help="Same as --precision int8."),
    option(
        "--backend",
        type=click.Choice(runtime_names()),
        help="Run on this runtime only. [default: as --precision chooses]",
    ),
    device_option,
    option(
        "-b",
        "--batch-size",
        type=IntegerOrAuto(BATCH_SIZES[0], BATCH_SIZES[-1]),
        help="Tiles per batch; auto finds a size by a short measurement. [default: 32]",
    ),
    option(
        "-j",
        "--workers",
        type=IntegerOrAuto(WORKERS[0], WORKERS[-1]),
        default="auto",
        help="Decode processes; auto keeps as many as feed the model.",
    ),
    option("--overwrite", is_flag=True, help="Replace a finished table and other existing outputs."),
    option("--resume/--no-resume", default=True, help="Go on with a partial run, or discard it."),
    option(
        "--retry-failures",
        is_flag=True,
        help="Predict the failed tiles of a finished table again; its other rows stay as they are.",
    ),
    option(
        "--update",
        is_flag=True,
        help="Bring a finished table up to date: predict only tiles that are new or changed, drop rows of those that "
        "are gone.",
    ),
    option(
        "--shard",
        type=ShardOption(),
        help="Predict only the K-th of N parts of the tiles, such as 3/8; cervix-merge joins the finished tables.",
    ),
    option(
        "--ray",
        metavar="auto|ADDRESS",
        help="Predict on a Ray cluster: that of this machine, or the one whose head node is at ADDRESS.",
    ),
    option(
        "--ray-cpus",
        type=click.IntRange(1),
        metavar="N",
        help="CPUs of each worker on nodes without a GPU, as Ray's num_cpus. [default: all of a node, one worker]",
    ),
    option(
        "--max-failures",
        default="10%",
        metavar="COUNT|SHARE%",
        help="Stop, resumable, when more tiles than this fail; a share counts from the 1,000th tile on.",
    ),
    option(
        "--quality",
        "judge_quality",
        is_flag=True,
        help="Add a column quality, which flags tiles that look blank, blurred, dark, off_colour and so on.",
    ),
    option(
        "--abnormal-at",
        type=click.FloatRange(0, 1, min_open=True),
        help="Call a tile abnormal from this probability on (column abnormal). [default: the bundle's]",
    ),
    option(
        "--review-below",
        type=click.FloatRange(0, 1),
        help="Ask a person to see tiles below this confidence (column review). [default: the bundle's]",
    ),
    option(
        "--review-within",
        type=click.FloatRange(0, 1),
        help="Likewise tiles whose probability lies this close to --abnormal-at. [default: the bundle's]",
    ),
    option("--hash", "hash_tiles", is_flag=True, help="Add a column sha256: the digest of each tile's bytes."),
    coords_option,
    option(
        "--slide",
        metavar="PATTERN|FILE.csv",
        help="Which slide a tile is of: a pattern of paths, such as '{slide}/tiles/*', or a CSV file with "
        "path,slide_id and, where wanted, minx,miny. [default: the tile's folder below TILES]",
    ),
    option("--follow-links", is_flag=True, help="Follow links that lead out of TILES, to files and to folders."),
    slide_options,
    option("--summary", type=FILE, help="Also write a CSV file with a line for each slide."),
    option("--geojson", type=FILE, metavar="DIR", help="Also write GeoJSON for QuPath, a file for each slide."),
    option("--report", type=FILE, help="Also write a page for people, such as report.html."),
    option(
        "--dry-run",
        is_flag=True,
        help="Count the tiles, predict a few, print how long and how large a run would be; write nothing but the "
        "pictures of --preview.",
    ),
    option("--require-parity", is_flag=True, help="Refuse to run without a certificate (exit code 4)."),
    expect_digest_option,
    option("--log-file", type=FILE, help="File for details of the run, names of tiles included."),
    option("--json", "as_json", is_flag=True, help="Print events on standard output, one JSON object per line."),
    option("-q", "--quiet", is_flag=True, help="Print errors only."),
    option("-v", "--verbose", is_flag=True, help="Also print how long each stage was busy and waited."),
)
