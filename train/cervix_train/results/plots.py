"""Draws a training's pictures as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cervix_engine.privacy import keep_out_of_home
from cervix_engine.values import Pixels
from cervix_train.data.dataset import SPLITS
from cervix_train.data.distribution import ClassDistribution
from cervix_train.learning.stages import Stage
from cervix_train.results.calibration import Calibration
from cervix_train.results.metrics import Metrics


def plot_confusion(path: Path, metrics: Metrics) -> None:
    """Counts of true against predicted class; the shade is the share of the true class."""
    counts = np.array(metrics.confusion_matrix)
    names = [item.name for item in metrics.per_class]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _figure(width=1.6 + 0.9 * len(names), height=1.4 + 0.8 * len(names))
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true", title=f"{metrics.split}: accuracy {metrics.accuracy:.3f}")
    figure.savefig(path)


def plot_history(path: Path, stages: Sequence[Stage]) -> None:
    """Loss and accuracy per epoch, a row per stage; a line marks the epoch that was kept."""
    figure = _figure(width=9, height=3.6 * len(stages))
    for row, stage in enumerate(stages):
        epochs = range(1, stage.history.epochs + 1)
        for column, measure in enumerate(("loss", "accuracy"), 1):
            axes = figure.add_subplot(len(stages), 2, 2 * row + column)
            axes.plot(epochs, stage.history.values[measure], marker=".", label="training")
            if f"val_{measure}" in stage.history.values:
                axes.plot(epochs, stage.history.values[f"val_{measure}"], marker=".", label="validation")
            axes.axvline(stage.history.best_epoch, color="grey", linestyle=":", label="kept")
            axes.set(xlabel="epoch", ylabel=measure, title=stage.name)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend()
    figure.savefig(path)


def plot_distribution(path: Path, distribution: ClassDistribution) -> None:
    """Tiles of each class, a bar per split."""
    figure = _figure(width=9, height=3.4)
    axes = figure.add_subplot()
    names = [item.name for item in distribution.classes]
    for place, split in enumerate(SPLITS):
        counts = [item.splits[place] for item in distribution.classes]
        bars = axes.bar(np.arange(len(names)) + 0.27 * (place - 1), counts, width=0.25, label=split)
        axes.bar_label(bars, fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="tiles", title=f"largest class / smallest, training: {distribution.imbalance:.2f}")
    axes.legend()
    figure.savefig(path)


@dataclass(frozen=True, slots=True)
class Example:
    """One tile with its answer; `pixels` are `uint8 (height, width, 3)`."""

    pixels: Pixels
    true: str
    predicted: str
    confidence: float


def plot_examples(path: Path, examples: Sequence[Example], *, columns: int = 6) -> None:
    """A grid of tiles; above each its true class and what it was called, red where these differ."""
    rows = -(-len(examples) // columns)
    figure = _figure(width=1.75 * columns, height=2.1 * rows)
    for place, example in enumerate(examples, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(example.pixels)
        axes.axis("off")
        right = example.true == example.predicted
        called = f"{example.predicted} {example.confidence:.2f}"
        axes.set_title(f"{example.true}\n{called}", fontsize=8, color="black" if right else "crimson")
    figure.savefig(path)


def plot_reliability(path: Path, calibration: Calibration) -> None:
    """Accuracy against confidence on the test split, before and after the temperature; the diagonal is perfect.

    A point's size is its bin's share of the tiles.
    """
    figure = _figure(width=9, height=4.4)
    measured = {"before": calibration.test.before, "after": calibration.test.after}
    for position, (when, reliability) in enumerate(measured.items(), 1):
        confidence, accuracy = (
            [getattr(item, name) for item in reliability.bins] for name in ("confidence", "accuracy")
        )
        tiles = np.array([item.tiles for item in reliability.bins])
        axes = figure.add_subplot(1, 2, position)
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
        axes.plot(confidence, accuracy)
        axes.scatter(confidence, accuracy, s=20 + 400 * tiles / tiles.sum())
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal")
        axes.set_title(f"{when} the temperature: ECE {reliability.ece:.3f}, NLL {reliability.nll:.3f}")
    figure.savefig(path)


def _figure(*, width: float, height: float) -> Any:
    keep_out_of_home()
    from matplotlib.figure import Figure

    # A Figure of its own, not pyplot's: no global state, and no display is ever looked for.
    return Figure(figsize=(width, height), dpi=120, layout="constrained")
