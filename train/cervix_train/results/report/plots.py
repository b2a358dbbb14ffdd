"""Draws a training's pictures: PNG files, and SVG for its page, whose letters take the page's colours.

All are narrow: on a phone a page shows them about as wide as they are, so that their letters stay as large as the text.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cervix_engine.privacy import keep_out_of_home
from cervix_engine.values import Pixels
from cervix_train.data.dataset import HELD_OUT, SPLITS, Split
from cervix_train.data.distribution import ClassDistribution
from cervix_train.learning.stages import Stage
from cervix_train.results.calibration import Calibration
from cervix_train.results.curves import Curve, CurveKind
from cervix_train.results.metrics import Metrics
from cervix_train.results.operating_point import Worth

Figure = Any
Names = Mapping[str, str]

# Okabe and Ito's colours, which stay apart for colour-blind readers.
_COLOURS = {"train": "#009e73", "val": "#e69f00", "test": "#0072b2"}
# Of letters and axes.
_INK = "#16202a"
# What a page's style has for them in SVG, by day and in the dark.
_ON_A_PAGE = {_INK: "currentColor", _COLOURS["val"]: "var(--benign)", _COLOURS["test"]: "var(--normal)"}
_WIDTH_INCHES = 4.8
_STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def save_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, facecolor="white")


def as_svg(figure: Figure, name: str) -> str:
    """An `<svg>` element, the same for the same figure; `name` keeps its inner names apart from other figures'."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    for colour, name_on_a_page in _ON_A_PAGE.items():
        drawn = drawn.replace(colour, name_on_a_page)
    return drawn[drawn.index("<svg") :]


def draw_confusion(metrics: Metrics, names: Names) -> Figure:
    """Counts of true against predicted class; the shade is the share of the true class."""
    counts = np.array(metrics.confusion_matrix)
    shown = [names[item.name] for item in metrics.per_class]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
        axes.set_xticks(range(len(shown)), shown, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(shown)), shown)
        axes.set(xlabel="predicted", ylabel="true")

    return _figure(draw, height=_WIDTH_INCHES)


def draw_history(stages: Sequence[Stage]) -> Figure:
    """Loss and accuracy per epoch, two rows per stage; a line marks the epoch that was kept."""

    def draw(figure: Figure) -> None:
        rows = [(stage, measure) for stage in stages for measure in ("loss", "accuracy")]
        for row, (stage, measure) in enumerate(rows, 1):
            epochs = range(1, stage.history.epochs + 1)
            axes = figure.add_subplot(len(rows), 1, row)
            for split, name, label in (("train", measure, "training"), ("val", f"val_{measure}", "validation")):
                if name not in stage.history.values:
                    continue
                axes.plot(epochs, stage.history.values[name], marker=".", color=_COLOURS[split], label=label)
            axes.axvline(stage.history.best_epoch, color="grey", linestyle=":", label="kept")
            axes.set(xlabel="epoch", ylabel=measure, title=stage.name if measure == "loss" else "")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend()

    return _figure(draw, height=5.2 * len(stages))


def draw_distribution(distribution: ClassDistribution, names: Names) -> Figure:
    """Tiles of each class, a bar per split."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        shown = [names[item.name] for item in distribution.classes]
        for place, split in enumerate(SPLITS):
            counts = [item.splits[place] for item in distribution.classes]
            bars = axes.barh(
                np.arange(len(shown)) + 0.27 * (place - 1), counts, height=0.25, label=split, color=_COLOURS[split]
            )
            axes.bar_label(bars, fontsize=8, padding=2, color=_INK)
        axes.set_yticks(range(len(shown)), shown)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set(xlabel="tiles")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)

    return _figure(draw, height=1.3 + 0.65 * len(distribution.classes))


@dataclass(frozen=True, slots=True)
class Example:
    """One tile with its answer; `pixels` are `uint8 (height, width, 3)`."""

    pixels: Pixels
    true: str
    predicted: str
    confidence: float


def draw_examples(examples: Sequence[Example], names: Names, *, columns: int = 4) -> Figure:
    """A grid of tiles; above each its true class and what it was called, red where these differ."""

    def draw(figure: Figure) -> None:
        shown = {name for example in examples for name in (example.true, example.predicted)}
        longest = max((len(f"{names[name]} 1.00") for name in shown), default=1)
        size = min(6, 150 / longest)  # points, in which that fits above its tile
        for place, example in enumerate(examples, 1):
            axes = figure.add_subplot(-(-len(examples) // columns), columns, place)
            axes.imshow(example.pixels)
            axes.axis("off")
            right = example.true == example.predicted
            called = f"{names[example.predicted]} {example.confidence:.2f}"
            axes.set_title(f"{names[example.true]}\n{called}", fontsize=size, color=_INK if right else "crimson")

    return _figure(draw, height=1.5 * -(-len(examples) // columns))


def draw_reliability(calibration: Calibration) -> Figure:
    """Accuracy against confidence on the test split, before and after the temperature; the diagonal is perfect.

    A point's size is its bin's share of the tiles.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
        shown = (("before", calibration.test.before, "grey"), ("after", calibration.test.after, _COLOURS["test"]))
        for when, reliability, colour in shown:
            confidence, accuracy = (
                [getattr(item, name) for item in reliability.bins] for name in ("confidence", "accuracy")
            )
            tiles = np.array([item.tiles for item in reliability.bins])
            label = f"{when} the temperature: ECE {reliability.ece:.3f}"
            axes.plot(confidence, accuracy, color=colour, label=label)
            axes.scatter(confidence, accuracy, s=15 + 300 * tiles / tiles.sum(), color=colour)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13))

    return _figure(draw, height=5.2)


def draw_curves(
    curves: Mapping[Split, Curve], kind: CurveKind, points: Mapping[Split, Worth], labels: Mapping[Split, str]
) -> Figure:
    """One kind of curve of held-out tiles, with bands; a dot marks the operating point, where there is one."""
    roc = kind == "roc"

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for split in HELD_OUT:
            if split not in curves:
                continue
            shown, colour = curves[split], _COLOURS[split]
            low, high = shown.area_interval
            label = f"{labels[split]}: {shown.area:.3f} ({low:.3f} to {high:.3f})"
            axes.fill_between(shown.grid, shown.low, shown.high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(shown.x, shown.y, color=colour, label=label)
            if split in points and roc:
                at = points[split]
                axes.plot(1 - at.specificity, at.sensitivity, "o", color=colour, markeredgecolor=_INK)
        x, y = (
            ("false-positive rate (1 − specificity)", "sensitivity") if roc else ("sensitivity (recall)", "precision")
        )
        title = "area under the curve" if roc else "average precision"
        axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.legend(loc="lower right" if roc else "lower left", title=title)

    return _figure(draw, height=_WIDTH_INCHES)


def _figure(draw: Callable[[Figure], None], *, height: float) -> Figure:
    keep_out_of_home()
    import matplotlib
    from matplotlib import figure as figures

    with matplotlib.rc_context(_STYLE):
        # A Figure of its own, not pyplot's: no global state, and no display is ever looked for.
        figure = figures.Figure(figsize=(_WIDTH_INCHES, height), dpi=120, layout="constrained")
        draw(figure)
    return figure
