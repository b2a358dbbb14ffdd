"""Options that several commands have, each spelled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cervix_engine.run.sizes import BATCH_SIZES

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]

FILE = click.Path(path_type=Path)


def option(*names: str, **given: Any) -> Decorator:
    """An option whose default, where it has one, is shown."""
    return click.option(*names, **{"show_default": given.get("default") is not None, **given})


def options(*several: Decorator) -> Decorator:
    """Several options at once, in the order in which `--help` shows them."""

    def decorate(command: Function) -> Function:
        for decorator in reversed(several):
            command = decorator(command)
        return command

    return decorate


def model_option(purpose: str) -> Decorator:
    """`--model`; without it, `default_bundle` says which."""
    return option("--model", type=FILE, help=f"Bundle to {purpose}. [default: $CERVIX_MODEL, else models/cervix]")


def batch_size_option(help: str = "Number of tiles a batch.") -> Decorator:  # noqa: A002 - as click calls it
    """`--batch-size` of what computes with one that is set beforehand."""
    return option("-b", "--batch-size", type=click.IntRange(BATCH_SIZES[0], BATCH_SIZES[-1]), default=32, help=help)


precision_option = option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
    default="auto",
    help="Precision; auto takes the fastest certified one in floating point on this machine, else fp32.",
)
# `device.Device.parse` reads it.
device_option = option(
    "--device",
    default="auto",
    metavar="auto|cpu|cuda[:N,...]",
    help="Device to compute on; several GPUs, as cuda:0,1, take batches by turns.",
)
coords_option = option(
    "--coords",
    metavar="PATTERN|FILE.csv",
    help="Where tiles lie: a pattern of names, such as '{slide}_x{x}_y{y}', or a CSV file with path,minx,miny.",
)
expect_digest_option = option("--expect-digest", metavar="SHA256", help="Refuse a bundle with another digest.")
follow_links_option = option(
    "--follow-links", is_flag=True, help="Also take links that lead out of DATA, to files and to folders."
)
