"""How far TensorFlow's own image loader is from the engine's pixels, and what that does to a model's answers.

    python -m benchmarks.sources.pixels_vs_tensorflow TILES --model models/cervix --count 256 --json pixels.json

The reason why training here never uses that loader: another decoder and another resize are another input.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import click
import numpy as np

from benchmarks.common import json_option, machine, publish
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.tiles.preprocess import preprocess, read_tile
from cervix_engine.values import Pixels

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def tensorflow_pixels(tiles: list[Path], size: tuple[int, int]) -> Pixels:
    """What `image_dataset_from_directory` would give for these files, rounded to `uint8 (N, height, width, 3)`."""
    import tensorflow as tf

    def load(path: Path) -> Pixels:
        decoded = tf.io.decode_image(tf.io.read_file(str(path)), channels=3, expand_animations=False)
        return np.asarray(tf.round(tf.image.resize(decoded, size)).numpy(), np.uint8)

    return np.stack([load(path) for path in tiles])


@click.command()
@click.argument("tiles", type=click.Path(path_type=Path, exists=True))
@click.option("--model", type=click.Path(path_type=Path), default="models/cervix", show_default=True)
@click.option("--count", default=256, show_default=True, help="Tiles compared, chosen by seed.")
@json_option
def main(tiles: Path, model: Path, count: int, report: Path | None) -> None:
    """Compare pixels and the Keras model's probabilities."""
    import keras

    bundle = Bundle.open(model)
    found = sorted(path for path in tiles.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".bmp"))
    chosen = random.Random(0).sample(found, min(count, len(found)))
    ours = np.stack([preprocess(read_tile(path), contract=bundle.contract) for path in chosen])
    theirs = tensorflow_pixels(chosen, bundle.contract.input_size)
    network = keras.models.load_model(bundle.root / "model.keras", safe_mode=True)
    answers, others = (network.predict(pixels, batch_size=32, verbose=0) for pixels in (ours, theirs))

    levels = np.abs(ours.astype(np.int16) - theirs)
    changes = np.abs(answers - others)
    flips = int((answers.argmax(1) != others.argmax(1)).sum())
    print(f"{len(chosen)} tiles; {machine()}")
    mean, tail = levels.mean(), np.quantile(levels, 0.99)
    print(f"  pixels: mean difference {mean:.2f} levels of 255, p99 {tail:.0f}, max {levels.max()}")
    tail = np.quantile(changes, 0.99)
    print(f"  probabilities: p99 difference {tail:.4f}, max {changes.max():.4f}; {flips} classes changed")
    largest = {"levels": int(levels.max()), "probability": float(changes.max())}
    publish(report, {"benchmark": "pixels_vs_tensorflow", "tiles": len(chosen), "largest": largest, "flips": flips})


if __name__ == "__main__":
    main()
