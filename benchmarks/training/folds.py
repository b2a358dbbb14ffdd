"""Whether a cross-validation is quick, and gives the same figures twice.

    python -m benchmarks.training.folds TILES --weights FILE.weights.h5 --json folds.json

`cervix-train --folds` runs twice as a user would start it: with an empty cache, so that features are computed, then
with what the first run left there. Printed are the seconds of both, the pooled figures with their intervals, and
whether every answer out of fold is the same in both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.common import json_option, publish
from cervix_engine.bundle.bundle import Bundle
from cervix_train.results.fold_table import FIGURES_FILE, FOLDS_FILE


@click.command()
@click.argument("tiles", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", required=True, help="As of cervix-train.")
@click.option("--backbone", default="resnet101", show_default=True, help="As of cervix-train.")
@click.option("--folds", type=click.IntRange(3), default=5, show_default=True, help="Number of folds.")
@json_option
def main(tiles: Path, weights: str, backbone: str, folds: int, report: Path | None) -> None:
    """Cross-validate the labelled TILES twice."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        runs = {
            kind: _run(
                tiles,
                scratch / kind,
                "--weights",
                weights,
                "--backbone",
                backbone,
                "--folds",
                str(folds),
                "--cache",
                str(scratch / "features"),
            )
            for kind in ("cold", "warm")
        }
        bundles = [Bundle.open(scratch / kind) for kind in runs]
    # Digests were read with the bundles.
    same = len({bundle.files[FOLDS_FILE] for bundle in bundles}) == 1
    pooled = runs["cold"]["figures"]["pooled"]
    for kind, run in runs.items():
        click.echo(f"{kind}: {run['seconds']:.0f} s")
    for figure in ("accuracy", "macro_f1"):
        low, high = pooled[f"{figure}_interval"]
        click.echo(f"pooled {figure} {pooled[figure]:.4f} ({low:.4f} to {high:.4f})")
    click.echo(f"every answer out of fold is the same in both: {'yes' if same else 'NO'}")
    publish(report, {"benchmark": "folds", "folds": folds, "runs": runs, "same": same})


def _run(tiles: Path, out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "cervix_train.cli.train", str(tiles), "-o", str(out), *options]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "figures": Bundle.open(out).read_json(FIGURES_FILE, schema="cervix/folds/1")}


if __name__ == "__main__":
    main()
