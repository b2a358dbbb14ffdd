"""The options of `cervix-batch`, in the order in which `--help` shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cervix_engine.cli.shared.device_option import device_option

_FILE = click.Path(path_type=Path)


class IntegerOrAuto(click.IntRange):
    """A whole number in a range, or the word `auto`."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


_OPTIONS = (
    click.option(
        "-o", "--out", type=_FILE, required=True, help="Where the table goes: .csv, .csv.gz, .jsonl, .parquet."
    ),
    click.option("--model", type=_FILE, help="The bundle. [default: $CERVIX_MODEL, else models/cervix]"),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
        default="auto",
        show_default=True,
        help="auto takes the fastest certified one on this machine, else fp32.",
    ),
    click.option("--fp16", "precision", flag_value="fp16", help="Short for --precision fp16."),
    click.option("--int8", "precision", flag_value="int8", help="Short for --precision int8."),
    click.option(
        "--backend",
        type=click.Choice(
            ["onnxruntime-cpu", "onnxruntime-openvino", "openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]
        ),
        help="Run on this runtime only. [default: as --precision chooses]",
    ),
    device_option,
    click.option(
        "-b",
        "--batch-size",
        type=IntegerOrAuto(1, 4096),
        help="Tiles a batch; auto finds a size by a short measurement. [default: 32]",
    ),
    click.option(
        "-j",
        "--workers",
        type=IntegerOrAuto(1, 256),
        help="Decode threads; auto takes as many as keep the model busy. [default: one a core]",
    ),
    click.option("--overwrite", is_flag=True, help="Replace a finished table, and what else is asked for."),
    click.option(
        "--resume/--no-resume", default=True, show_default=True, help="Go on with a partial run; else discard it."
    ),
    click.option(
        "--retry-failures",
        is_flag=True,
        help="Predict only the failed tiles of a finished table again; its other rows stay as they are.",
    ),
    click.option(
        "--max-failures",
        default="10%",
        show_default=True,
        metavar="COUNT|SHARE%",
        help="Stop, resumable, when more tiles fail; a share counts from the 1,000th tile on.",
    ),
    click.option(
        "--quality",
        "judge_quality",
        is_flag=True,
        help="Put flags such as blank, blurred, dark or off_colour in a column quality where a tile looks so.",
    ),
    click.option("--hash", "hash_tiles", is_flag=True, help="Put the SHA-256 of each tile's bytes in a column sha256."),
    click.option(
        "--coords",
        metavar="PATTERN|FILE.csv",
        help="How names say where tiles lie, such as '{slide}_x{x}_y{y}'; or a file with path,minx,miny.",
    ),
    click.option("--summary", type=_FILE, help="Then also write a line for each slide, such as slides.csv."),
    click.option(
        "--geojson", type=_FILE, metavar="DIR", help="Then also write QuPath's objects, a file for each slide."
    ),
    click.option("--report", type=_FILE, help="Then also make a page for people, such as report.html."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Count the tiles, predict a few, say how long and how large a run would be; write nothing.",
    ),
    click.option("--require-parity", is_flag=True, help="Refuse to run without a certificate (exit 4)."),
    click.option("--expect-digest", metavar="SHA256", help="Pin the bundle: refuse any other."),
    click.option("--log-file", type=_FILE, help="Write details there, names of tiles included."),
    click.option("--json", "as_json", is_flag=True, help="Print events on standard output, one JSON object a line."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("-v", "--verbose", is_flag=True, help="Also say how long each stage was busy and waited."),
)


def batch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the command's function with all of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
