"""End to end, files to predictions: the engine against a Keras folder pipeline with `predict`, in one run.

    python benchmarks/folder_vs_keras.py TILES --model models/cervix --count 512 --rounds 5

Both read the same files, decode, resize to 224 and compute the same network; the engine also writes its fsynced
table. Start-up and compilation are reported apart.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from common import interleave, machine, sample_tiles

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def keras_folder(tiles: Path, bundle: Path, batch_size: int) -> tuple[Callable[[], float], float]:
    """A pass of `image_dataset_from_directory` + `predict` over `tiles`, and the seconds it took to be ready."""
    started = time.perf_counter()
    import keras
    import tensorflow as tf

    model = keras.models.load_model(bundle / "model.keras", safe_mode=True)
    height, width = model.input_shape[1:3]

    def dataset() -> Any:
        images = keras.utils.image_dataset_from_directory(
            tiles, labels=None, image_size=(height, width), batch_size=batch_size, shuffle=False, verbose=False
        )
        return images.map(lambda pixels: tf.cast(pixels, tf.uint8)).prefetch(tf.data.AUTOTUNE)

    model.predict(dataset().take(1), verbose=0)
    ready = time.perf_counter() - started

    def run() -> float:
        began = time.perf_counter()
        rows = len(model.predict(dataset(), verbose=0))
        return rows / (time.perf_counter() - began)

    return run, ready


def engine_folder(tiles: Path, bundle_root: Path, batch_size: int, precision: str) -> tuple[Callable[[], float], float]:
    """A pass of the engine over `tiles`, from discovery to the committed table; and the seconds to be ready."""
    started = time.perf_counter()
    from cervix_engine.backends import open_backend
    from cervix_engine.batch import discover_beside, predict_partial, run_identity
    from cervix_engine.bundle import Bundle
    from cervix_engine.machine import usable_cpus
    from cervix_engine.output.partial import PartialRun, output_lock
    from cervix_engine.run_report import Provenance
    from cervix_engine.selection import replay_golden, select

    bundle = Bundle.open(bundle_root)
    backend = open_backend(bundle, combination=select(bundle, precision=precision).combination)  # type: ignore[arg-type]
    backend.__enter__()
    replay_golden(bundle, backend, batch_size=batch_size)
    ready = time.perf_counter() - started
    out = tiles.parent / "preds.csv"

    def run() -> float:
        began = time.perf_counter()
        with output_lock(out):
            listing = discover_beside(out, tiles)
            identity = run_identity(
                bundle.contract, backend.info, bundle_digest=bundle.digest, batch_size=batch_size, listing=listing
            )
            report = predict_partial(
                PartialRun.create(out, identity=identity, listing=listing),
                listing,
                contract=bundle.contract,
                backend=backend,
                workers=usable_cpus(),
                report_path=out.with_suffix(".run.json"),
                provenance=Provenance(bundle.digest, None, 0.0, ready),
            )
        return report.found / (time.perf_counter() - began)

    return run, ready


@click.command()
@click.argument("tiles", type=click.Path(path_type=Path, exists=True))
@click.option("--model", type=click.Path(path_type=Path), default="models/cervix", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--count", default=512, show_default=True, help="Tiles in the race, chosen by seed.")
@click.option("--rounds", default=5, show_default=True)
@click.option("-b", "--batch-size", default=32, show_default=True)
def main(tiles: Path, model: Path, precision: str, count: int, rounds: int, batch_size: int) -> None:
    """Race the engine against Keras over the same real tiles."""
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "tiles"
        sample_tiles(tiles, sample, count=count)
        keras_run, keras_ready = keras_folder(sample, model, batch_size)
        engine_run, engine_ready = engine_folder(sample, model, batch_size, precision)
        names = ("Keras folder pipeline + predict", f"cervix-batch, {precision}")
        rates = interleave({names[0]: keras_run, names[1]: engine_run}, rounds=rounds)
    print(f"{count} tiles, batch {batch_size}, {rounds} interleaved rounds; {machine()}")
    for name, ready in zip(names, (keras_ready, engine_ready), strict=True):
        print(f"  {name:32} {rates[name]}   ready after {ready:.1f} s")
    print(f"  ratio {rates[names[1]].median / rates[names[0]].median:.2f}")


if __name__ == "__main__":
    main()
