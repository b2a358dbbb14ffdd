"""Two checkouts of this project against each other: `cervix-batch` from files to the finished table, in one run.

    git worktree add ../before v0.1.0
    python -m benchmarks.races.before_after TILES --before ../before --model models/cervix --precision fp32 --rounds 5

Each round starts both commands once, in turn, with the same interpreter and libraries; only the checkout differs.
The rate is the run's own, from its `.run.json`; the whole command's seconds, start included, stand beside it, as do
those of `--help`. Both tables must have the same bytes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click

from benchmarks.common import interleave, machine, race_options, sample_tiles

FOLDERS = ("engine", "edge", "export", "train")
COMMAND = "from cervix_engine.cli.batch import main; main()"


@dataclass
class Checkout:
    """One state of the code; `seconds` gathers how long whole commands took."""

    root: Path
    arguments: list[str]
    out: Path
    seconds: list[float] = field(default_factory=list)
    help_seconds: list[float] = field(default_factory=list)

    def run(self) -> float:
        """One run from files to table, and its rate in tiles a second."""
        self.help_seconds.append(self._timed(["--help"]))
        self.seconds.append(self._timed([*self.arguments, "--out", str(self.out), "--overwrite"]))
        record = json.loads(self.out.with_name(f"{self.out.name}.run.json").read_text(encoding="utf-8"))
        return float(record["tiles_per_sec"])

    def _timed(self, arguments: list[str]) -> float:
        path = os.pathsep.join(str(self.root.resolve() / folder) for folder in FOLDERS)
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 3):
            raise click.ClickException(f"{self.root}: exit code {done.returncode}: {done.stderr[-500:]}")
        return time.perf_counter() - started


@click.command()
@race_options
@click.option("--before", type=click.Path(path_type=Path, exists=True), required=True, help="The earlier checkout.")
@click.option("--option", "options", multiple=True, help="Passed on to both commands, such as --option=--quality.")
def main(
    tiles: Path,
    model: Path,
    precision: str,
    count: int,
    rounds: int,
    batch_size: int,
    before: Path,
    options: tuple[str, ...],
) -> None:
    """Race this checkout against an earlier one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample_tiles(tiles, folder / "tiles", count=count)
        arguments = [str(folder / "tiles"), "--model", str(model), "--precision", precision, "-b", str(batch_size)]
        states = {
            name: Checkout(root, [*arguments, *options], folder / f"{name}.csv")
            for name, root in (("before", before), ("after", Path(__file__).parents[2]))
        }
        rates = interleave({name: state.run for name, state in states.items()}, rounds=rounds)
        equal = len({state.out.read_bytes() for state in states.values()}) == 1
    print(f"{count} tiles, {precision}, batch {batch_size}, {rounds} interleaved rounds; {machine()}")
    for name, state in states.items():
        whole, help_s = statistics.median(state.seconds[1:]), statistics.median(state.help_seconds[1:])
        print(f"  {name:8} {rates[name]}   whole command {whole:.2f} s, --help {help_s:.3f} s")
    old, new = states["before"], states["after"]
    print(f"  after ÷ before: {rates['after'].median / rates['before'].median:.3f} in rate,", end=" ")
    print(f"{statistics.median(new.seconds[1:]) / statistics.median(old.seconds[1:]):.3f} in whole seconds,", end=" ")
    print(f"{statistics.median(new.help_seconds[1:]) / statistics.median(old.help_seconds[1:]):.3f} in --help")
    print(f"  the tables are {'equal, byte for byte' if equal else 'NOT equal'}")


if __name__ == "__main__":
    main()
