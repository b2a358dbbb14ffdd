"""The options of `cervix-export` that say whether and how a TensorRT engine is built."""

from __future__ import annotations

import re

import click

from cervix_engine.cli.shared.options import option, options


def _capabilities(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        if not re.fullmatch(r"\d{1,2}\.\d", name):
            raise click.BadParameter(f"{name!r} is no compute capability such as 8.9")
    return tuple(dict.fromkeys(names))


# `--engine`, and the fields of `EngineOptions`.
engine_options = options(
    option(
        "--engine",
        type=click.Choice(["auto", "none", "tensorrt", "tensorrt-rtx"]),
        default="auto",
        help="TensorRT engine to make; auto: one where TensorRT and a GPU are here.",
    ),
    option(
        "--compute-capability",
        "compute_capabilities",
        metavar="X.Y[,X.Y…]",
        callback=_capabilities,
        help="Build a tensorrt-rtx engine ahead of time for these GPUs, such as 8.0,8.9; needs no GPU.",
    ),
    option("--min-batch", type=click.IntRange(1), default=1, help="Smallest batch size."),
    option(
        "--opt-batch", type=click.IntRange(1), help="Tiles it is tuned for. [default: 64 to 256, by the GPU's memory]"
    ),
    option(
        "--max-batch", type=click.IntRange(1), help="Most tiles it takes. [default: 128 to 512, by the GPU's memory]"
    ),
    option(
        "--workspace",
        "workspace_mib",
        metavar="MIB",
        type=click.IntRange(1),
        help="Scratch memory that the engine's kernels may use. [default: all that the GPU has]",
    ),
    option(
        "--hardware-compat",
        type=click.Choice(["none", "same-cc", "ampere+"]),
        default="none",
        help="GPUs that an engine also runs on, more slowly: those of one compute capability, or from Ampere on.",
    ),
)
