"""What every benchmark here does alike: interleaved rounds, medians with their spread, the machine's description."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from cervix_engine.machine import cpu_class, software, usable_cpus


@dataclass(frozen=True)
class Rate:
    """Tiles per second over several rounds: the median, and the smallest and largest."""

    median: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:8.1f} tiles/s  ({self.low:.1f} to {self.high:.1f})"


def interleave(contenders: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, Rate]:
    """Run every contender once a round, in turn, so that a noisy minute hurts all of them alike.

    Every other round goes backwards, so that what a contender leaves behind is not always met by the same one. Each
    contender returns the tiles per second of one pass; the first round warms up and is not counted.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            rate = contenders[name]()
            if number:
                rates[name].append(rate)
    return {name: Rate(statistics.median(seen), min(seen), max(seen)) for name, seen in rates.items()}


def machine() -> str:
    """One line that says where the figures come from."""
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{usable_cpus()} cores, {cpu_class()}, {system}"


def describe() -> dict[str, Any]:
    """The machine and what is installed, for a benchmark's JSON."""
    return {"machine": machine(), "software": software(), "load": os.getloadavg()[0]}


def publish(report: Path | None, figures: dict[str, Any]) -> None:
    """Write a benchmark's figures with the machine's description, where a file for them was named.

    Those of `benchmarks/results/` become the tables of README and docs/figures.md: `python scripts/write_tables.py`.
    """
    if report:
        text = json.dumps({**describe(), **figures}, indent=2, ensure_ascii=False)
        report.write_text(text + "\n", encoding="utf-8")


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json FILE`, for `publish`."""
    help_text = "Write the figures there, such as into benchmarks/results/."
    return click.option("--json", "report", type=click.Path(path_type=Path), help=help_text)(command)


def race_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every race over a folder of tiles is asked: which tiles and model, how many, how often."""
    options = (
        click.argument("tiles", type=click.Path(path_type=Path, exists=True)),
        click.option("--model", type=click.Path(path_type=Path), default="models/cervix", show_default=True),
        click.option("--precision", default="fp32", show_default=True),
        click.option("--count", default=512, show_default=True, help="Tiles in the race, chosen by seed."),
        click.option("--rounds", default=5, show_default=True),
        click.option("-b", "--batch-size", default=32, show_default=True),
    )
    for option in reversed(options):
        command = option(command)
    return command


def sample_tiles(source: Path, target: Path, *, count: int, seed: int = 0) -> None:
    """Copy `count` tiles, chosen by seed, keeping one folder a class."""
    tiles = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".bmp"))
    for tile in random.Random(seed).sample(tiles, min(count, len(tiles))):
        folder = target / tile.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(tile, folder / tile.name)
