"""The paper's protocol on 25,000 tiles and 50 epochs: features once, against the plain Keras loop.

    python benchmarks/protocol_vs_keras.py TILES --weights FILE.weights.h5 --count 64 --rounds 3

Nobody waits for the plain loop's days, so both are measured on a sample of real tiles, in interleaved rounds, and
extrapolated; every factor is printed. The plain loop is what a reader of the paper would write: `fit` on the whole
model with its backbone frozen, from `image_dataset_from_directory`, with validation after each epoch. Ours is the
feature pass, read and decoded from the same files, and epochs of the head alone on 17,500 features. Both learn for
all 50 epochs: early stopping would shorten the plain loop's days as it shortens our seconds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_train.batches import LabelledFeatures
from cervix_train.feature_runtime import (
    FeatureRuntime,
    GraphRuntime,
    KerasRuntime,
    graph_runtimes,
    onnx_graph,
    relative_difference,
)
from cervix_train.fit import FitConfig, fit
from cervix_train.keras_runtime import load_keras
from cervix_train.network import BACKBONES, Backbone, build_extractor, build_head, join, parse_weights
from cervix_train.tiles import tile_batches
from common import Rate, interleave, machine, sample_tiles

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TILES, EPOCHS, CLASSES = 25_000, 50, 5
TRAIN, VAL, TEST = (round(share * TILES) for share in (0.70, 0.15, 0.15))
LEARNING_RATE = 0.002
HEAD_EPOCHS = 3  # measured


@dataclass(frozen=True, slots=True)
class Race:
    """What both sides are given: one folder per class, the network's input size, and tiles per step."""

    tiles: Path
    input_size: tuple[int, int]
    batch_size: int

    def paths(self) -> list[Path]:
        return sorted(path for path in self.tiles.rglob("*") if path.is_file())

    def images(self) -> Any:
        """What the plain loop reads: TensorFlow's loader, one-hot labels, prefetched."""
        import tensorflow as tf

        images = load_keras().utils.image_dataset_from_directory(
            self.tiles,
            label_mode="categorical",
            class_names=[item.name for item in SIPAKMED_CLASSES],
            image_size=self.input_size,
            batch_size=self.batch_size,
            seed=0,
            verbose=False,
        )
        return images.prefetch(tf.data.AUTOTUNE)


def plain_passes(extractor: Any, race: Race) -> tuple[Callable[[], float], Callable[[], float]]:
    """Tiles per second of a training pass and of a validation pass of the plain loop."""
    keras = load_keras()
    model = join(extractor, build_head(features=extractor.output.shape[-1], classes=CLASSES))
    model.compile(
        optimizer=keras.optimizers.Adamax(LEARNING_RATE), loss="categorical_crossentropy", metrics=["accuracy"]
    )
    count = len(race.paths())

    def training() -> float:
        started = time.perf_counter()
        # The loader shuffles; asked to do so again, Keras would only warn that it does not.
        model.fit(race.images(), epochs=1, shuffle=False, verbose=0)
        return count / (time.perf_counter() - started)

    def validation() -> float:
        started = time.perf_counter()
        model.evaluate(race.images(), verbose=0)
        return count / (time.perf_counter() - started)

    return training, validation


def feature_pass(runtime: FeatureRuntime, race: Race) -> Callable[[], float]:
    """Tiles per second from files to features."""
    contract = ModelContract(classes=SIPAKMED_CLASSES, input_size=race.input_size)
    paths = race.paths()

    def run() -> float:
        started = time.perf_counter()
        for batch in tile_batches(paths, contract=contract, batch_size=race.batch_size, failures={}):
            runtime(batch.pixels)
        return len(paths) / (time.perf_counter() - started)

    return run


def head_epoch(features: int, *, batch_size: int) -> Callable[[], float]:
    """Epochs per second of the head on as many features as the protocol has: their values do not matter."""
    random = np.random.default_rng(0)

    def part(count: int) -> LabelledFeatures:
        return LabelledFeatures(random.random((count, features), np.float32), random.integers(0, CLASSES, count))

    train, val = part(TRAIN), part(VAL)
    config = FitConfig(HEAD_EPOCHS, LEARNING_RATE, batch_size, seed=0, patience=HEAD_EPOCHS)

    def run() -> float:
        head = build_head(features=features, classes=CLASSES)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            fit(head, train=train, val=val, checkpoint=Path(folder) / "head.weights.h5", config=config)
        return HEAD_EPOCHS / (time.perf_counter() - started)

    return run


def sample_pixels(race: Race) -> Any:
    contract = ModelContract(classes=SIPAKMED_CLASSES, input_size=race.input_size)
    return next(tile_batches(race.paths(), contract=contract, batch_size=race.batch_size, failures={})).pixels


def conversion(extractor: Any, race: Race) -> tuple[list[GraphRuntime], float, dict[str, float]]:
    """The runtimes of the converted extractor, the seconds until both had computed once, and their differences."""
    pixels = sample_pixels(race)
    expected = KerasRuntime(extractor)(pixels)
    started = time.perf_counter()
    graph = onnx_graph(extractor)
    runtimes = [GraphRuntime(backend, graph) for backend in graph_runtimes().values()]
    differences = {runtime.name: relative_difference(runtime(pixels), expected) for runtime in runtimes}
    return runtimes, time.perf_counter() - started, differences


def measure_epochs(run: Callable[[], float], *, rounds: int) -> float:
    """Seconds of an epoch of the head, the median of `rounds` after one that warms up."""
    return statistics.median([1 / run() for _ in range(rounds + 1)][1:])


def report(rates: dict[str, Rate], *, converted_s: float, epoch_s: float) -> None:
    """Print the extrapolation, factor by factor."""
    training, validation, keras, *graphs = rates.values()
    graph = max(graphs, key=lambda rate: rate.median)
    plain_s = EPOCHS * (TRAIN / training.median + VAL / validation.median) + TEST / validation.median
    by_graph = converted_s + TILES / graph.median
    by_keras = TILES / keras.median
    head_s = EPOCHS * epoch_s
    ours_s = min(by_graph, by_keras) + head_s
    print("the plain loop:")
    print(f"  {EPOCHS} epochs x ({TRAIN} tiles / {training.median:.2f} + {VAL} tiles / {validation.median:.2f} per s)")
    print(f"  + test once, {TEST} tiles / {validation.median:.2f} per s = {plain_s:.0f} s = {plain_s / 3600:.1f} h")
    print("features once:")
    print(f"  Keras {TILES} tiles / {keras.median:.2f} per s = {by_keras:.0f} s")
    print(f"  graph {converted_s:.0f} s of conversion + {TILES} tiles / {graph.median:.2f} per s = {by_graph:.0f} s")
    print(f"  the lesser + {EPOCHS} epochs x {epoch_s:.2f} s = {head_s:.0f} s: {ours_s:.0f} s = {ours_s / 3600:.2f} h")
    print(f"ratio {plain_s / ours_s:.1f} (the feature pass by Keras: {plain_s / (by_keras + head_s):.1f})")


@click.command()
@click.argument("tiles", type=click.Path(path_type=Path, exists=True))
@click.option("--backbone", type=click.Choice(BACKBONES), default="resnet101", show_default=True, help="cnn: a trial.")
@click.option("--weights", default="none", show_default=True, help="The backbone's: none, imagenet or a file.")
@click.option("--count", default=64, show_default=True, help="Tiles in the sample, chosen by seed.")
@click.option("--rounds", default=3, show_default=True, help="Rounds that count; one more warms up.")
@click.option("-b", "--batch-size", default=32, show_default=True)
@click.option("--input-size", default=224, show_default=True)
def main(
    tiles: Path, backbone: Backbone, weights: str, count: int, rounds: int, batch_size: int, input_size: int
) -> None:
    """Measure both ways of the paper's protocol on TILES, one folder per class, and extrapolate."""
    if count % batch_size:
        raise click.UsageError("--count must be a multiple of --batch-size: a padded batch would count as a full one")
    load_keras(seed=0)
    size = (input_size, input_size)
    extractor = build_extractor(backbone, input_size=size, weights=parse_weights(weights, backbone=backbone))
    extractor.trainable = False
    with tempfile.TemporaryDirectory() as folder:
        race = Race(Path(folder), size, batch_size)
        sample_tiles(tiles, race.tiles, count=count)
        graphs, converted_s, differences = conversion(extractor, race)
        training, validation = plain_passes(extractor, race)
        rates = interleave(
            {
                "plain loop, training pass": training,
                "plain loop, validation pass": validation,
                "feature pass, Keras": feature_pass(KerasRuntime(extractor), race),
                **{f"feature pass, {runtime.name}": feature_pass(runtime, race) for runtime in graphs},
            },
            rounds=rounds,
        )
    epoch_s = measure_epochs(head_epoch(extractor.output.shape[-1], batch_size=batch_size), rounds=rounds)
    print(f"{backbone}, {count} tiles, {input_size} px, batch {batch_size}, {rounds} interleaved rounds; {machine()}")
    for name, rate in rates.items():
        print(f"  {name:38} {rate}")
    for name, difference in differences.items():
        print(f"  features of {name} differ by {difference:.1e} of the largest")
    report(rates, converted_s=converted_s, epoch_s=epoch_s)


if __name__ == "__main__":
    main()
