"""`cervix-train`: labelled tiles in, a bundle with the Keras reference model out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cervix_engine.bundle.bundle import DEFAULT_BUNDLE
from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, batch_size_option, follow_links_option, option
from cervix_engine.cli.shared.tables import wide_console
from cervix_engine.contract import SIPAKMED_CLASSES
from cervix_engine.errors import CervixError, UsageError
from cervix_engine.extras import require_installed
from cervix_engine.files import cache_beside
from cervix_engine.words import counted
from cervix_train.cli import require_libraries
from cervix_train.cli.tables import comparison_table, copies_table, folds_table
from cervix_train.features.extractor import BACKBONES, Backbone, Weights, parse_weights
from cervix_train.learning.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from cervix_train.learning.config import TrainConfig
    from cervix_train.results.metrics import Metrics


@click.command(cls=CervixCommand)
@click.argument("data", type=FILE)
@option("-o", "--out", type=FILE, default=DEFAULT_BUNDLE, help="Folder of the bundle to write.")
@option(
    "--weights",
    metavar="imagenet|none|FILE",
    help="Weights that the backbone starts from; FILE is a *.weights.h5, or one of Keras's without the top layers, "
    "*_notop.h5 or *_no_top.h5.  [default: imagenet; none for the cnn backbone]",
)
@option(
    "--backbone",
    type=click.Choice(BACKBONES),
    default="resnet101",
    help="Network that tiles go through: resnet101 is the paper's; the others are to compare it with, cnn for trials.",
)
@option(
    "--compare",
    metavar="BACKBONE,…",
    help="Train each of these backbones alike, into OUT/<backbone>, and print one table of what they reach.",
)
@option("--epochs", type=click.IntRange(1), default=50, help="Maximum number of epochs.")
@option(
    "--optimizer",
    type=click.Choice(list(OPTIMIZERS)),
    default="adamax",
    help="Optimiser, with Keras's own settings but for --learning-rate; sgd has a momentum of 0.9.",
)
@option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate of the optimiser.  [default: 0.002 for adamax, 0.01 for sgd, 0.001 for the others]",
)
@option(
    "--class-weights",
    type=click.Choice(["none", "balanced"]),
    default="none",
    help="balanced: each class counts alike in the loss of training tiles, however many of them it has.",
)
@option(
    "--recipe",
    type=click.Choice(["head", "paper", "full"]),
    default="head",
    help="What learns. head: the head, on frozen features. paper: then the last layers of the backbone too, on pixels; "
    "the better of the two on validation is kept. full: every layer at once, as from scratch.",
)
@option(
    "--patience",
    type=click.IntRange(1),
    default=5,
    help="Stop after so many epochs in a row without a lower validation loss.",
)
@option(
    "--fine-tune-epochs",
    type=click.IntRange(1),
    default=50,
    help="Maximum number of epochs of fine-tuning, in --recipe paper.",
)
@option(
    "--fine-tune-rate",
    type=click.FloatRange(0, min_open=True),
    default=1e-5,
    help="Learning rate of the optimiser while fine-tuning, in --recipe paper.",
)
@option(
    "--thaw",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Share of the backbone's layers, counted from the last, that fine-tuning changes.",
)
@option(
    "--mixed-precision/--full-precision",
    default=None,
    help="Compute in BF16 what is learnt from: the backbone in stages on pixels, and training tiles' features, where "
    "OpenVINO's agree with Keras's; or compute nothing in BF16. Weights stay FP32, and so do validation and test "
    "tiles' features, the temperature and all metrics.  [default: stages on pixels alone, where CPU or GPU has BF16]",
)
@option(
    "--augment",
    type=click.IntRange(0, 100),
    default=0,
    metavar="K",
    help="Also learn from K altered copies of each training tile (turned, flipped, lit), in all stages.",
)
@batch_size_option()
@option(
    "--input-size",
    type=click.IntRange(32, 1024),
    default=224,
    help="Height and width of the network's input in pixels.",
)
@option(
    "--scaled-decoding",
    is_flag=True,
    help="Decode JPEG tiles of at least twice (four times) the input size at 1/2 (1/4), here and where the model runs.",
)
@option(
    "--sensitivity",
    type=click.FloatRange(0.5, 1),
    default=0.98,
    help="Share of the validation tiles' abnormal cells that the operating point must find.",
)
@option(
    "--review-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    help="Largest share of the validation tiles that the operating point may ask a person to see.",
)
@option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Seed of all that is random: the same seed and tiles give the same model.",
)
@option("--classes", type=FILE, help="JSON that describes classes other than SIPaKMeD's, as in a contract.json.")
@follow_links_option
@option(
    "--folds",
    type=click.IntRange(3, 20),
    metavar="K",
    help="Cross-validate: K folds of all tiles, groups kept whole, a model for each, then one that learns from all "
    "tiles. A split that DATA gives is not used. In --recipe head.",
)
@option(
    "--tensorboard",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for TensorBoard's events, one folder in it for each stage or fold.",
)
@option(
    "--cache", type=FILE, help="Folder where computed features are kept.  [default: .cervix-cache/features beside OUT]"
)
@option(
    "--resume/--no-resume",
    default=None,
    help="Continue an interrupted training, or fail if it is another one; or begin anew.  "
    "[default: continue if it is the same training]",
)
@option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
def main(**options: Any) -> None:
    """Train a classifier on the labelled tiles in DATA and write a bundle.

    DATA is a folder with one folder of tiles per class (SIPaKMeD's and Kaggle's layouts are known), optionally
    below or above train/, val/ and test/; or a manifest CSV with the columns path,label[,group][,split].
    """
    from cervix_engine.cli.shared.logs import log_lines

    with log_lines("cervix_train", "cervix_keras"):
        _train(**options)


def _train(*, compare: str | None, folds: int | None, out: Path, weights: str | None, **rest: Any) -> None:
    from cervix_engine.cli.shared.surroundings import scratch_in
    from cervix_engine.outputs.places import local_file, require_outside

    require_libraries()
    if compare is None and out.exists():
        require_outside(out, (rest["classes"], local_file(weights)))
    if compare is not None and folds is not None:
        raise UsageError("--compare and --folds: train each backbone with --folds, then cervix-compare-folds A B")
    if rest["tensorboard"]:
        require_installed("train", "tensorboard", work="--tensorboard")
    scratch_in(next(folder for folder in out.absolute().parents if folder.is_dir()))
    parsed = "none" if compare is not None else parse_weights(weights, backbone=rest["backbone"])
    config = _config(out=out, weights=parsed, **rest)
    if compare is not None:
        _compare(config, compare, weights=weights)
    else:
        _learn(config, folds)


def _config(
    *,
    out: Path,
    input_size: int,
    classes: Path | None,
    cache: Path | None,
    recipe: str,
    fine_tune_epochs: int,
    fine_tune_rate: float,
    learning_rate: float | None,
    **rest: Any,
) -> TrainConfig:
    from cervix_engine.cli.shared.logs import command_line
    from cervix_train.data.dataset import read_classes
    from cervix_train.learning.config import TrainConfig

    return TrainConfig(
        out=out,
        classes=read_classes(classes) if classes else SIPAKMED_CLASSES,
        input_size=(input_size, input_size),
        cache=cache or cache_beside(out) / "features",
        learning_rate=learning_rate or OPTIMIZERS[rest["optimizer"]].learning_rate,
        fine_tune_epochs=fine_tune_epochs if recipe == "paper" else 0,
        fine_tune_learning_rate=fine_tune_rate,
        whole=recipe == "full",
        command=command_line(),
        **rest,
    )


def _learn(config: TrainConfig, folds: int | None) -> None:
    """Train once, or in folds, and print what came of it."""
    from cervix_train.training.folds import train_folds
    from cervix_train.training.train import train

    if folds is not None:
        cross_validated = train_folds(config, folds=folds)
        report = cross_validated.training
        wide_console().print(folds_table(cross_validated.figures))
    else:
        report = train(config)
    if report.copies.found:
        wide_console().print(copies_table(report.copies))
    click.echo(f"{_result(report.metrics)}; bundle written to {config.out}", err=True)


def _compare(config: TrainConfig, names: str, *, weights: str | None) -> None:
    from cervix_train.training.comparators import compare_backbones, comparison_file

    chosen = [name.strip() for name in names.split(",")]
    backbones = [name for name in BACKBONES if name in chosen]
    if len(backbones) != len(chosen):
        raise UsageError(f"--compare {names}: expected different ones of {', '.join(BACKBONES)}")
    if weights not in (None, "none", "imagenet"):
        raise UsageError(f"--weights {weights} fits one backbone: with --compare, leave it out or say none")

    def weights_of(backbone: Backbone) -> Weights:
        return parse_weights(None if weights == "imagenet" else weights, backbone=backbone)

    comparison = compare_backbones(config, sorted(backbones, key=chosen.index), weights_of=weights_of)
    wide_console().print(comparison_table(comparison))
    click.echo(f"all figures: {comparison_file(config.out)}", err=True)
    failed = [item.backbone for item in comparison.comparators if item.error]
    if failed:
        raise CervixError(f"not trained: {', '.join(failed)}; see the warnings above")


def _result(metrics: Metrics) -> str:
    """The closing line's figures, each with its 95 % interval."""
    where = "pooled" if metrics.split == "folds" else "test"
    scores = (
        (f"{where} accuracy", metrics.accuracy, metrics.accuracy_interval),
        ("macro F1", metrics.macro.f1, metrics.macro_f1_interval),
    )
    figures = ", ".join(f"{name} {value:.3f} (95 %: {low:.3f} to {high:.3f})" for name, value, (low, high) in scores)
    groups = f" of {counted(metrics.groups, 'group')}" if metrics.groups else ""
    return f"{figures} on {counted(metrics.tiles, 'tile')}{groups}"


if __name__ == "__main__":
    main()
