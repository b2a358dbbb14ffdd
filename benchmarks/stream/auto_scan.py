"""Automatic batch size and workers against the best of a scan, re-measured, on tiles of one kind.

    python -m benchmarks.stream.auto_scan TILES --side 224 --suffix .jpg --model models/cervix --json auto_224_jpg.json

The tiles are made from those in TILES: resized to `--side` and encoded anew. The scan takes every combination once,
interleaved; its best and the automatic choice are then raced against each other, since the best of many noisy figures
flatters itself.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.common import interleave, json_option, publish, sample_tiles
from benchmarks.races.contenders import Run, encode_anew, engine, tile_files
from cervix_engine.backends import Backend, open_backend
from cervix_engine.backends.selection import select
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.machine import usable_cpus
from cervix_engine.run.tuning import tune

Setting = tuple[int, int | None]  # batch size, and workers, or as many as feed the model


def runs_of(tiles: Path, bundle: Bundle, backend: Backend, settings: list[Setting]) -> dict[str, Run]:
    """A run for each setting, by its name."""
    return {
        _named(batch_size, workers): engine(tiles, bundle, backend, batch_size=batch_size, workers=workers)
        for batch_size, workers in settings
    }


def _named(batch_size: int, workers: int | None) -> str:
    return f"batch {batch_size}, {workers or 'automatic'} workers"


@click.command()
@click.argument("tiles", type=click.Path(path_type=Path, exists=True))
@click.option("--model", type=click.Path(path_type=Path), default="models/cervix", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--side", default=224, show_default=True, help="Height and width of the tiles in pixels.")
@click.option("--suffix", default=".jpg", show_default=True)
@click.option("--count", default=512, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--batch-sizes", default="8,16,32,64", show_default=True)
@json_option
def main(
    tiles: Path,
    model: Path,
    precision: str,
    side: int,
    suffix: str,
    count: int,
    rounds: int,
    batch_sizes: str,
    report: Path | None,
) -> None:
    """Compare the automatic setting with a scan."""
    bundle = Bundle.open(model)
    combination = select(bundle, precision=precision).combination  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder, open_backend(bundle, combination=combination) as backend:
        sample = Path(folder) / "tiles"
        sample_tiles(tiles, sample, count=count)
        encode_anew(sample, side=side, suffix=suffix)
        began = time.perf_counter()
        tuned = tune(backend, [path.read_bytes() for path in tile_files(sample)[:32]], contract=bundle.contract)
        tuning_s = time.perf_counter() - began
        workers = sorted({1, usable_cpus(), 2 * usable_cpus()})
        settings: list[Setting] = [(int(size), count) for size in batch_sizes.split(",") for count in workers]
        scan = interleave(runs_of(sample, bundle, backend, settings), rounds=1)
        best = max(scan, key=lambda name: scan[name].median)
        auto = _named(tuned, None)
        both = dict.fromkeys([auto, best])
        chosen = runs_of(sample, bundle, backend, [*settings, (tuned, None)])
        raced = interleave({name: chosen[name] for name in both}, rounds=rounds)
    ratio = raced[auto].median / raced[best].median
    print(
        f"{side} px {suffix}: automatic is {auto} after {tuning_s:.1f} s, the scan's best is {best}; ratio {ratio:.2f}"
    )
    figures: dict[str, Any] = {
        "tiles": {"side_px": side, "suffix": suffix, "count": count},
        "automatic": auto,
        "best": best,
        "ratio": ratio,
        "tuning_s": tuning_s,
        "scan": {name: rate.to_json() for name, rate in scan.items()},
        "raced": {name: rate.to_json() for name, rate in raced.items()},
    }
    publish(report, {"benchmark": "auto_scan", **figures})


if __name__ == "__main__":
    main()
