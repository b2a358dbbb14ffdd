"""`cervix-audit`: whether a test set holds what a model has already seen, and what that is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, Decorator, follow_links_option, option
from cervix_engine.contract import SIPAKMED_CLASSES
from cervix_engine.files import output_errors, scratch_folder, write_json
from cervix_engine.words import agreeing, counted
from cervix_train.cli import require_libraries
from cervix_train.features.extractor import BACKBONES, parse_weights

SHOWN = 20


def _for_price(*names: str, help: str = "Same as in cervix-train", **given: Any) -> Decorator:  # noqa: A002
    """An option that only `--price` uses."""
    return option(*names, help=f"{help}, for --price.", **given)


@click.command(cls=CervixCommand)
@click.argument("data", type=FILE)
@option("--classes", type=FILE, help="Same as in cervix-train.")
@follow_links_option
@option("--json", "json_file", type=FILE, help="Also write all findings to this file.")
@option(
    "--price", is_flag=True, help="Also train the same head on random and on grouped splits, and print both accuracies."
)
@_for_price("--repeats", type=click.IntRange(1, 100), default=5, help="Number of random and of grouped splits")
@_for_price("--weights", metavar="imagenet|none|FILE")
@_for_price("--backbone", type=click.Choice(BACKBONES), default="resnet101")
@_for_price("--input-size", type=click.IntRange(32, 1024), default=224)
@_for_price("--epochs", type=click.IntRange(1), default=50, help="Maximum number of epochs of each training")
@_for_price("-b", "--batch-size", type=click.IntRange(1, 4096), default=32, help="Number of tiles a batch")
@_for_price(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of the first split, counted up from there"
)
@_for_price(
    "--cache",
    type=FILE,
    help="Folder where computed features are kept, such as cervix-train's (by default none are kept)",
)
def main(**options: Any) -> None:
    """Find copies and near-copies among the labelled tiles in DATA, across its split.

    Found are equal files, and copies that were flipped, turned by quarters, lit differently, re-encoded, or cropped
    to 90 % of their sides or more.
    """
    from cervix_engine.cli.shared.logs import log_lines

    with log_lines("cervix_train", "cervix_keras"):
        _audit(**options)


def _audit(
    *, data: Path, classes: Path | None, follow_links: bool, json_file: Path | None, price: bool, **rest: Any
) -> None:
    from cervix_engine.cli.shared.surroundings import prepare_outputs
    from cervix_engine.outputs.places import json_start
    from cervix_train.audit.audit import SCHEMA, audit, summary
    from cervix_train.data.dataset import read_classes

    if price:
        require_libraries()
    prepare_outputs((json_file, json_start(SCHEMA)), inputs=(data, classes))
    known = read_classes(classes) if classes else SIPAKMED_CLASSES
    findings = summary(audit(data, classes=known, follow_links=follow_links))
    findings["price"] = _price(data=data, classes=known, follow_links=follow_links, **rest) if price else None
    if json_file:
        with output_errors(f"cannot write {json_file}"):
            write_json(json_file, findings)
    _print(findings)


def _price(
    *, repeats: int, weights: str | None, backbone: Any, input_size: int, cache: Path | None, seed: int, **rest: Any
) -> dict[str, Any]:
    from cervix_train.audit.leak_cost import leak_cost
    from cervix_train.learning.config import TrainConfig

    with scratch_folder() as folder:
        config = TrainConfig(
            out=Path(),  # nothing is kept
            overwrite=False,
            weights=parse_weights(weights, backbone=backbone),
            backbone=backbone,
            input_size=(input_size, input_size),
            learning_rate=0.002,
            cache=cache or folder,
            seed=seed,
            **rest,
        )
        return leak_cost(config, seeds=range(seed, seed + repeats)).to_json()


def _print(findings: dict[str, Any]) -> None:
    click.echo(
        f"{counted(findings['tiles'], 'tile')}, {findings['unreadable']} unreadable: "
        f"{counted(findings['exact_pairs'], 'pair is an exact copy', 'pairs are exact copies')}, "
        f"{counted(findings['near_pairs'], 'near copy', 'near copies')}"
    )
    for leak in findings["leaks"][:SHOWN]:
        kind = "copy" if leak["exact"] else f"near copy ({leak['correlation']:.3f})"
        click.echo(f"{leak['first_split']} {leak['first']} = {leak['second_split']} {leak['second']}: {kind}")
    if len(findings["leaks"]) > SHOWN:
        click.echo(f"… and {len(findings['leaks']) - SHOWN} more: --json FILE lists all")
    for pair in findings["two_labels"][:SHOWN]:
        click.echo(
            f"two labels: {pair['first']} is {pair['first_label']}, {pair['second']} is {pair['second_label']} "
            f"({pair['correlation']:.3f})"
        )
    if findings["test_tiles"]:
        leaked, straddling = findings["test_tiles_in_training"], findings["groups_across_splits"]
        share = leaked / findings["test_tiles"]
        click.echo(
            f"{leaked} of {counted(findings['test_tiles'], 'test tile')} ({share:.1%}) {agreeing(leaked, 'is', 'are')} "
            f"in the training split too; {counted(straddling, 'group')} {agreeing(straddling, 'lies', 'lie')} across "
            "splits"
        )
    if findings["price"]:
        random, grouped = (findings["price"][f"{name}_mean"] for name in ("random", "grouped"))
        click.echo(
            f"price of the leak: test accuracy {random:.4f} on random splits, {grouped:.4f} on grouped ones, "
            f"{100 * (random - grouped):+.2f} points ({len(findings['price']['random'])} splits of each kind)"
        )


if __name__ == "__main__":
    main()
