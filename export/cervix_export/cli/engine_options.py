"""The options of `cervix-export` that say whether and how a TensorRT engine is built."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def engine_options(command: F) -> F:
    """Add `--engine` and the fields of `EngineOptions` to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _capabilities(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        if not re.fullmatch(r"\d{1,2}\.\d", name):
            raise click.BadParameter(f"{name!r} is no compute capability such as 8.9")
    return tuple(dict.fromkeys(names))


_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["auto", "none", "tensorrt", "tensorrt-rtx"]),
        default="auto",
        show_default=True,
        help="TensorRT engine to make; auto: one where TensorRT and a GPU are here.",
    ),
    click.option(
        "--compute-capability",
        "compute_capabilities",
        metavar="X.Y[,X.Y…]",
        callback=_capabilities,
        help="Build a tensorrt-rtx engine ahead of time for these GPUs, such as 8.0,8.9; needs no GPU.",
    ),
    click.option("--min-batch", type=click.IntRange(1), default=1, show_default=True, help="Smallest batch size."),
    click.option(
        "--opt-batch", type=click.IntRange(1), help="Tiles it is tuned for. [default: 64 to 256, by the GPU's memory]"
    ),
    click.option(
        "--max-batch", type=click.IntRange(1), help="Most tiles it takes. [default: 128 to 512, by the GPU's memory]"
    ),
    click.option(
        "--workspace",
        "workspace_mib",
        metavar="MIB",
        type=click.IntRange(1),
        default=1024,
        show_default=True,
        help="Scratch memory that the engine's kernels may use.",
    ),
    click.option(
        "--hardware-compat",
        type=click.Choice(["none", "same-cc", "ampere+"]),
        default="none",
        show_default=True,
        help="GPUs that an engine also runs on, more slowly: those of one compute capability, or from Ampere on.",
    ),
)
