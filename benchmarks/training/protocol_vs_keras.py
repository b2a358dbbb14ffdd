"""The paper's protocol on 25,000 tiles and 50 epochs: features once, against the plain Keras loop.

    python -m benchmarks.training.protocol_vs_keras TILES --weights FILE.weights.h5 --rounds 3 --json protocol.json

Nobody waits for the plain loop's days, so both are measured on a sample of real tiles, in interleaved rounds, and
extrapolated; every factor is printed. The plain loop is what a reader of the paper would write: `fit` on the whole
model with its backbone frozen, from `image_dataset_from_directory`, with validation after each epoch. Ours is the
feature pass, read and decoded from the same files, and epochs of the head alone on 17,500 features: all features in
FP32, and, where the CPU has BF16, as `cervix-train --mixed-precision` does it, training tiles in BF16 and the others,
which are measured on, in FP32. All learn for all 50 epochs: early stopping would shorten the plain loop's days as it
shortens our seconds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import Rate, interleave, json_option, machine, publish, sample_tiles
from cervix_engine.backends import Backend
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_keras.start import load_keras
from cervix_train.data.tiles import tile_batches
from cervix_train.features.backends import ExtractorBackends
from cervix_train.features.choice import relative_difference
from cervix_train.features.extractor import BACKBONES, Backbone, build_extractor, parse_weights
from cervix_train.learning.batches import LabelledFeatures
from cervix_train.learning.fit import fit
from cervix_train.learning.fit_setup import FitConfig
from cervix_train.learning.network import build_head, join

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TILES, EPOCHS, CLASSES = 25_000, 50, 5
TRAIN, VAL, TEST = (round(share * TILES) for share in (0.70, 0.15, 0.15))
LEARNING_RATE = 0.002
HEAD_EPOCHS = 3  # measured
# The passes that are measured, beside one for each graph.
TRAINING, VALIDATION, KERAS = "plain loop, training pass", "plain loop, validation pass", "feature pass, Keras"


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


def feature_pass(backend: Backend, race: Race) -> Callable[[], float]:
    """Tiles per second from files to features."""
    contract = ModelContract(classes=SIPAKMED_CLASSES, input_size=race.input_size)
    paths = race.paths()

    def run() -> float:
        started = time.perf_counter()
        for batch in tile_batches(paths, contract=contract, batch_size=race.batch_size, failures={}):
            backend.infer(batch.pixels)
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


@dataclass(frozen=True, slots=True)
class Graphs:
    """The converted extractor's opened backends, by name.

    Attributes:
        fp32: those that can compute all features.
        bf16: what computes training tiles with `--mixed-precision`; empty where the CPU has no BF16.
        fp32_s: seconds of the conversion, and until all of `fp32` had computed once.
        bf16_s: seconds more until `bf16` had.
        differences: from Keras, as a share of the largest feature.
    """

    fp32: dict[str, Backend]
    bf16: dict[str, Backend]
    fp32_s: float
    bf16_s: float
    differences: dict[str, float]

    @property
    def all(self) -> dict[str, Backend]:
        return {**self.fp32, **self.bf16}


def conversion(backends: ExtractorBackends, race: Race, stack: ExitStack) -> Graphs:
    pixels = sample_pixels(race)
    expected = backends.backend(backends.keras).infer(pixels)
    differences: dict[str, float] = {}

    def begun(name: str) -> Backend:
        backend = stack.enter_context(backends.backend(name))
        differences[name] = relative_difference(backend.infer(pixels), expected)
        return backend

    started = time.perf_counter()
    backends.convert()
    fp32 = {name: begun(name) for name in backends.names() if name != backends.keras}
    between = time.perf_counter()
    bf16 = {} if backends.no_bf16() else {name: begun(name) for name in backends.names("bf16")}
    ended = time.perf_counter()
    return Graphs(fp32, bf16, between - started, ended - between, differences)


def measure_epochs(run: Callable[[], float], *, rounds: int) -> float:
    """Seconds of an epoch of the head, the median of `rounds` after one that warms up."""
    return statistics.median([1 / run() for _ in range(rounds + 1)][1:])


def of_graph(name: str) -> str:
    return f"feature pass, {name}"


def extrapolate(rates: dict[str, Rate], graphs: Graphs, *, epoch_s: float) -> dict[str, float]:
    """Print the extrapolation, factor by factor; gives the seconds of each way."""
    training, validation, keras = rates[TRAINING].median, rates[VALIDATION].median, rates[KERAS].median
    graph = max(rates[of_graph(name)].median for name in graphs.fp32)
    plain_s = EPOCHS * (TRAIN / training + VAL / validation) + TEST / validation
    by_keras, by_graph = TILES / keras, graphs.fp32_s + TILES / graph
    print("the plain loop:")
    print(f"  {EPOCHS} epochs x ({TRAIN} tiles / {training:.2f} + {VAL} tiles / {validation:.2f} per s)")
    print(f"  + test once, {TEST} tiles / {validation:.2f} per s = {plain_s:.0f} s = {plain_s / 3600:.1f} h")
    print("features once, all in FP32:")
    print(f"  Keras {TILES} tiles / {keras:.2f} per s = {by_keras:.0f} s")
    print(f"  graph {graphs.fp32_s:.0f} s of conversion + {TILES} tiles / {graph:.2f} per s = {by_graph:.0f} s")
    print(f"  by Keras: {_with_head(by_keras, epoch_s, plain_s)}")
    print(f"  the lesser: {_with_head(min(by_keras, by_graph), epoch_s, plain_s)}")
    seconds = {"plain_s": plain_s, "fp32_s": min(by_keras, by_graph) + EPOCHS * epoch_s}
    print("features once, --mixed-precision:")
    if not graphs.bf16:
        print("  not here: the CPU has no BF16")
        return seconds
    bf16, fp32 = rates[of_graph(next(iter(graphs.bf16)))].median, max(keras, graph)
    mixed_s = graphs.fp32_s + graphs.bf16_s + TRAIN / bf16 + (VAL + TEST) / fp32
    print(f"  {graphs.fp32_s:.0f} + {graphs.bf16_s:.0f} s of conversion + {TRAIN} training tiles in BF16 / {bf16:.2f}")
    print(f"  + ({VAL} + {TEST}) tiles in FP32 / {fp32:.2f}, both per s = {mixed_s:.0f} s")
    print(f"  {_with_head(mixed_s, epoch_s, plain_s)}")
    return {**seconds, "mixed_s": mixed_s + EPOCHS * epoch_s}


def _with_head(features_s: float, epoch_s: float, plain_s: float) -> str:
    """A feature pass and the head's epochs, and how much longer the plain loop takes."""
    ours_s = features_s + EPOCHS * epoch_s
    return (
        f"{features_s:.0f} s + {EPOCHS} epochs x {epoch_s:.2f} s = {ours_s:.0f} s = {ours_s / 3600:.2f} h; "
        f"ratio {plain_s / ours_s:.1f}"
    )


@click.command()
@click.argument("tiles", type=click.Path(path_type=Path, exists=True))
@click.option("--backbone", type=click.Choice(BACKBONES), default="resnet101", show_default=True, help="cnn: a trial.")
@click.option("--weights", default="none", show_default=True, help="The backbone's: none, imagenet or a file.")
@click.option("--count", default=64, show_default=True, help="Tiles in the sample, chosen by seed.")
@click.option("--rounds", default=3, show_default=True, help="Rounds that count; one more warms up.")
@click.option("-b", "--batch-size", default=32, show_default=True)
@click.option("--input-size", default=224, show_default=True)
@json_option
def main(
    tiles: Path,
    backbone: Backbone,
    weights: str,
    count: int,
    rounds: int,
    batch_size: int,
    input_size: int,
    report: Path | None,
) -> None:
    """Measure both ways of the paper's protocol on TILES, one folder per class, and extrapolate."""
    if count % batch_size:
        raise click.UsageError("--count must be a multiple of --batch-size: a padded batch would count as a full one")
    load_keras(seed=0)
    size = (input_size, input_size)
    extractor = build_extractor(backbone, input_size=size, weights=parse_weights(weights, backbone=backbone))
    extractor.trainable = False
    backends = ExtractorBackends(extractor)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        race = Race(Path(folder), size, batch_size)
        sample_tiles(tiles, race.tiles, count=count)
        graphs = conversion(backends, race, stack)
        training, validation = plain_passes(extractor, race)
        rates = interleave(
            {
                TRAINING: training,
                VALIDATION: validation,
                KERAS: feature_pass(backends.backend(backends.keras), race),
                **{of_graph(name): feature_pass(backend, race) for name, backend in graphs.all.items()},
            },
            rounds=rounds,
        )
    epoch_s = measure_epochs(head_epoch(extractor.output.shape[-1], batch_size=batch_size), rounds=rounds)
    print(f"{backbone}, {count} tiles, {input_size} px, batch {batch_size}, {rounds} interleaved rounds; {machine()}")
    for name, rate in rates.items():
        print(f"  {name:38} {rate}")
    for name, difference in graphs.differences.items():
        print(f"  features of {name} differ by {difference:.1e} of the largest")
    seconds = extrapolate(rates, graphs, epoch_s=epoch_s)
    figures = {"benchmark": "protocol_vs_keras", "backbone": backbone, "tiles": TILES, "epochs": EPOCHS, **seconds}
    publish(report, {**figures, "rates": {name: rate.to_json() for name, rate in rates.items()}})


if __name__ == "__main__":
    main()
