"""End to end, files to predictions: the engine against a Keras folder pipeline with `predict`, in one run.

    python -m benchmarks.races.folder_vs_keras TILES --model models/cervix --count 512 --rounds 5 --json fp32.json

Both read the same files, decode, resize to 224 and compute the same network; the engine also writes its fsynced
table. Start-up and compilation are reported apart.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

from benchmarks.common import interleave, json_option, machine, publish, race_options, sample_tiles
from benchmarks.races.contenders import Run, engine, keras_folder
from cervix_engine.backends import open_backend
from cervix_engine.backends.selection import replay_golden, select
from cervix_engine.bundle.bundle import Bundle


def ready_keras(tiles: Path, bundle_root: Path, batch_size: int) -> tuple[Run, float]:
    """Keras's passes over `tiles`, and the seconds until the first can begin, compilation included."""
    started = time.perf_counter()
    run = keras_folder(tiles, bundle_root, batch_size=batch_size)
    return run, time.perf_counter() - started


def ready_engine(tiles: Path, bundle_root: Path, batch_size: int, precision: str) -> tuple[Run, float]:
    """The engine's passes over `tiles`, and the seconds until the first can begin, golden tiles included."""
    started = time.perf_counter()
    bundle = Bundle.open(bundle_root)
    backend = open_backend(bundle, combination=select(bundle, precision=precision).combination)  # type: ignore[arg-type]
    backend.__enter__()
    replay_golden(bundle, backend, batch_size=batch_size)
    return engine(tiles, bundle, backend, batch_size=batch_size), time.perf_counter() - started


@click.command()
@race_options
@json_option
def main(
    tiles: Path, model: Path, precision: str, count: int, rounds: int, batch_size: int, report: Path | None
) -> None:
    """Race the engine against Keras over the same real tiles."""
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "tiles"
        sample_tiles(tiles, sample, count=count)
        keras_run, keras_ready = ready_keras(sample, model, batch_size)
        engine_run, engine_ready = ready_engine(sample, model, batch_size, precision)
        names = ("Keras folder pipeline + predict", f"cervix-batch, {precision}")
        rates = interleave({names[0]: keras_run, names[1]: engine_run}, rounds=rounds)
    print(f"{count} tiles, batch {batch_size}, {rounds} interleaved rounds; {machine()}")
    for name, ready in zip(names, (keras_ready, engine_ready), strict=True):
        print(f"  {name:32} {rates[name]}   ready after {ready:.1f} s")
    print(f"  ratio {rates[names[1]].median / rates[names[0]].median:.2f}")
    keras, ours = (rates[name].to_json() for name in names)
    figures = {"benchmark": "folder_vs_keras", "precision": precision, "tiles": count, "batch_size": batch_size}
    publish(
        report, {**figures, "keras": keras, "engine": ours, "ready_s": {"keras": keras_ready, "engine": engine_ready}}
    )


if __name__ == "__main__":
    main()
