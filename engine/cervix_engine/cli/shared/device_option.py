"""`--device`, as the commands that compute take it; `device.Device.parse` reads it."""

from __future__ import annotations

import click

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N,...]",
    help="Device to compute on; several GPUs, as cuda:0,1, take batches by turns.",
)
