"""Takes every measurement again whose figures stand in README.md and docs/figures.md, one after another.

    python scripts/measure_all.py TILES --model BUNDLE && python scripts/write_tables.py

TILES is one folder of tiles per class, BUNDLE a ResNet-101 trained on them, with FP32, FP16 and INT8 graphs that are
certified on this machine. On two quiet cores all of it takes less than twenty minutes. A measurement that fails keeps
the figures that it had, and is named at the end. `--trial` takes as few tiles and rounds as work, into a folder of its
own: it shows that all commands run, in a few minutes, and its figures mean nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Measurement:
    """One benchmark, and what its figures are called in `benchmarks/results/`.

    Attributes:
        name: of its JSON file, without the suffix.
        command: a module of benchmarks/, or a command of ours, and its arguments; {tiles} and {bundle} are put in.
        size: how much is measured.
        trial: as little of it as works.
    """

    name: str
    command: str
    size: str = ""
    trial: str = ""

    def arguments(self, tiles: Path, bundle: Path, out: Path, *, trial: bool) -> list[str]:
        words = [*self.command.split(), *(self.trial if trial else self.size).split()]
        program, *rest = (word.format(tiles=tiles, bundle=bundle) for word in words)
        start = [sys.executable, "-m", f"benchmarks.{program}"]
        if program.startswith("cervix-"):
            start = [str(Path(sys.executable).with_name(program))]
        return [*start, *rest, "--json", str(out)]


MODEL = "--model {bundle}"
RACE = f"{{tiles}} {MODEL}"
FEW = "--count 32 --rounds 1 --batch-size 16"
MEASUREMENTS = (
    *(
        Measurement(
            f"folder_{precision}",
            f"races.folder_vs_keras {RACE} --precision {precision}",
            "--count 192 --rounds 3",
            FEW,
        )
        for precision in ("fp32", "bf16", "int8")
    ),
    *(
        Measurement(
            f"model_{precision}",
            f"races.model_loop {MODEL} --precision {precision}",
            "--rounds 3 --seconds 4",
            "--rounds 1 --seconds 1",
        )
        for precision in ("fp32", "bf16", "int8")
    ),
    Measurement("batch_one", f"races.batch_one {MODEL}", "--rounds 8", "--rounds 1 --each 2"),
    Measurement("efficiency", f"stream.efficiency {RACE} --precision int8", "--count 256 --rounds 3", FEW),
    Measurement(
        "overhead",
        "stream.stream_overhead {tiles}",
        "--count 300000 --rounds 3",
        "--count 4000 --overhead-count 4000 --rounds 1",
    ),
    Measurement("million_rows", "scale.million_rows", "--rows 1000000", "--rows 2000"),
    Measurement("parity", f"cervix-parity {MODEL}"),
    Measurement(
        "peers",
        f"races.peers {RACE} --precision int8 --no-keras",
        "--count 256 --rounds 3",
        f"{FEW} --small-count 64",
    ),
    *(
        Measurement(
            f"auto_{side}_jpg",
            f"stream.auto_scan {RACE} --precision int8 --side {side}",
            "--count 128 --rounds 3 --batch-sizes 16,32,64",
            "--count 32 --rounds 1 --batch-sizes 16",
        )
        for side in (100, 512)
    ),
    Measurement("decoders", "sources.decoders {tiles}", "--count 8 --rounds 3", "--sides 512 --count 2 --rounds 1"),
    Measurement(
        "protocol",
        "training.protocol_vs_keras {tiles}",
        "--count 32 --rounds 2",
        "--backbone cnn --count 32 --rounds 1 --input-size 32",
    ),
    Measurement("pixels", f"sources.pixels_vs_tensorflow {RACE}", "--count 256", "--count 16"),
)
# Written by the training that made the bundle, and kept in it.
METRICS = "metrics"


FOLDER = click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True)


@click.command()
@click.argument("tiles", type=FOLDER)
@click.option("--model", type=FOLDER, required=True, help="Bundle to measure with.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="Folder for the figures.  [default: benchmarks/results]",
)
@click.option("--only", multiple=True, metavar="NAME", help="Only this measurement; may be repeated.")
@click.option("--trial", is_flag=True, help="Only show that all commands run; needs --results.")
def main(tiles: Path, model: Path, results: Path | None, only: Sequence[str], trial: bool) -> None:
    """Take the measurements again that README and docs/figures.md show."""
    names = [item.name for item in MEASUREMENTS]
    if unknown := set(only) - {*names, METRICS}:
        raise click.UsageError(f"--only {min(unknown)}: expected one of {', '.join([*names, METRICS])}")
    if trial and results is None:
        raise click.UsageError("--trial: its figures mean nothing, so name another folder for them with --results")
    folder = results or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    began, failed = time.monotonic(), []
    for item in MEASUREMENTS:
        if not only or item.name in only:
            failed += [] if measured(item, tiles, model, folder, trial=trial) else [item.name]
    if not only or METRICS in only:
        shutil.copy(model / "training" / "metrics.json", folder / f"{METRICS}.json")
    click.echo(f"all together {time.monotonic() - began:.0f} s; figures in {folder}")
    if failed:
        raise click.ClickException(f"failed, so their figures are as before: {', '.join(failed)}")


def measured(item: Measurement, tiles: Path, bundle: Path, folder: Path, *, trial: bool) -> bool:
    """Take one measurement; its figures are replaced only where it ends well."""
    new = folder / f".{item.name}.json"
    command = item.arguments(tiles, bundle, new, trial=trial)
    click.echo(f"--- {item.name}: {' '.join(command[1:])}")
    began = time.monotonic()
    environment = {**os.environ, "CERVIX_MODEL": str(bundle)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    click.echo(f"--- {item.name}: {time.monotonic() - began:.0f} s")
    if done.returncode == 0:
        new.replace(folder / f"{item.name}.json")
    new.unlink(missing_ok=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
