"""The long campaigns: `python -m torture` runs all of them, `python -m torture PART` one, each with its own bounds.

`tests` must be on the path. Everything happens in a temporary folder, and what was seen is told in `torture/report.md`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click

from torture import parts
from torture.cluster import ACTOR, DRIVER, NODE
from torture.report import PartReport, Seen

_REAL_DATA = click.option(
    "--data", type=click.Path(path_type=Path), envvar="CERVIX_DATA", help="Real tiles. [default: $CERVIX_DATA]"
)
_SEED = click.option("--seed", type=click.IntRange(1), default=1, show_default=True)


@click.group(invoke_without_command=True, subcommand_metavar="[PART [OPTIONS]]")
@click.option("--reports", type=click.Path(path_type=Path), default="torture", show_default=True)
@click.pass_context
def main(context: click.Context, reports: Path) -> None:
    """Run the campaign PART, or all of them one after another."""
    context.obj = reports
    if context.invoked_subcommand is None:
        sys.exit(_run_all(reports))


def _run_all(reports: Path) -> int:
    chosen = [["points"], ["errors"], ["kills"], ["workers"], ["cluster"], ["hostile"], ["fuzz"], ["soak"]]
    if os.environ.get("CERVIX_MODEL") and os.environ.get("CERVIX_DATA"):
        chosen.insert(5, ["kills-model"])
    # Each in a process of its own: forking needs one without threads, and the soak one without a past.
    command = [sys.executable, "-m", "torture", "--reports", str(reports)]
    codes = [subprocess.run([*command, *part]).returncode for part in chosen]
    click.echo((reports / "report.md").read_text(encoding="utf-8"))
    return max(map(abs, codes))


def _run(part: str, reports: Path, campaign: Callable[[Path], Seen]) -> None:
    (reports / f"{part}.json").unlink(missing_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        seen = campaign(Path(scratch))
    command = f"python -m torture {shlex.join(sys.argv[1:])}"
    report = PartReport(part, command, seen, time.monotonic() - started)
    report.save(reports)
    verdict = "held" if report.held else f"violated: {seen.violations[0]}"
    click.echo(f"{part}: {verdict} ({report.seconds:.0f} s)", err=True)
    sys.exit(not report.held)


@main.command()
@click.option("--tiles", type=click.IntRange(1), default=11, show_default=True, help="Drawn tiles a run.")
@click.pass_obj
def points(reports: Path, tiles: int) -> None:
    """Kill a run at each of its steps in turn."""
    _run("points", reports, lambda scratch: parts.points(scratch, tiles=tiles))


@main.command()
@click.option("--tiles", type=click.IntRange(1), default=11, show_default=True, help="Drawn tiles a run.")
@click.pass_obj
def errors(reports: Path, tiles: int) -> None:
    """Let each call on the output, the listing and the tiles fail in turn."""
    _run("errors", reports, lambda scratch: parts.errors(scratch, tiles=tiles))


@main.command()
@click.option("--count", type=click.IntRange(1), default=1000, show_default=True, help="Kills of forked runs.")
@click.option("--programs", type=click.IntRange(0), default=50, show_default=True, help="Kills of whole programs.")
@click.option("--tiles", type=click.IntRange(1), default=200, show_default=True, help="Drawn tiles a run.")
@_SEED
@click.pass_obj
def kills(reports: Path, count: int, programs: int, tiles: int, seed: int) -> None:
    """Kill runs of a tiny model at random instants."""
    _run("kills", reports, lambda at: parts.kills(at, count=count, programs=programs, tiles=tiles, seed=seed))


@main.command()
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Kills of decode workers.")
@click.option("--parents", type=click.IntRange(0), default=50, show_default=True, help="Kills of whole programs.")
@click.option("--tiles", type=click.IntRange(1), default=1500, show_default=True, help="Drawn tiles a run.")
@_SEED
@click.pass_obj
def workers(reports: Path, count: int, parents: int, tiles: int, seed: int) -> None:
    """Kill decode workers of runs, and runs, at random instants."""
    _run("workers", reports, lambda at: parts.workers(at, count=count, parents=parents, tiles=tiles, seed=seed))


@main.command()
@click.option("--actors", type=click.IntRange(0), default=50, show_default=True, help="Kills of actors.")
@click.option("--nodes", type=click.IntRange(0), default=10, show_default=True, help="Kills of a node's raylet.")
@click.option("--drivers", type=click.IntRange(0), default=10, show_default=True, help="Kills of drivers.")
@click.option("--tiles", type=click.IntRange(1), default=1500, show_default=True, help="Drawn tiles a run.")
@_SEED
@click.pass_obj
def cluster(reports: Path, actors: int, nodes: int, drivers: int, tiles: int, seed: int) -> None:
    """Kill actors, nodes and drivers of runs on a Ray cluster, at random instants."""
    kills = {ACTOR: actors, NODE: nodes, DRIVER: drivers}
    _run("cluster", reports, lambda at: parts.cluster(at, kills=Counter(kills), tiles=tiles, seed=seed))


@main.command()
@click.option("--model", type=click.Path(path_type=Path), required=True, envvar="CERVIX_MODEL", help="The bundle.")
@click.option("--count", type=click.IntRange(1), default=30, show_default=True, help="Kills.")
@click.option("--tiles", type=click.IntRange(1), default=64, show_default=True, help="Real tiles a run.")
@_REAL_DATA
@_SEED
@click.pass_obj
def kills_model(reports: Path, model: Path, data: Path | None, count: int, tiles: int, seed: int) -> None:
    """Kill runs of a real bundle at random instants."""
    if data is None:
        raise click.UsageError("real tiles are needed: pass --data or set $CERVIX_DATA")
    _run(
        "kills-model",
        reports,
        lambda at: parts.kills_model(at, model=model, data=data, count=count, tiles=tiles, seed=seed),
    )


@main.command()
@click.option("--cut-tiles", type=click.IntRange(1), default=24, show_default=True, help="Real tiles to cut.")
@_REAL_DATA
@click.pass_obj
def hostile(reports: Path, data: Path | None, cut_tiles: int) -> None:
    """Run over hostile files, cut tiles and all real ones."""
    _run("hostile", reports, lambda scratch: parts.hostile(scratch, data=data, cut_tiles=cut_tiles))


@main.command()
@click.option("--executions", type=click.IntRange(1000), default=1_000_000, show_default=True)
@_SEED
@click.pass_obj
def fuzz(reports: Path, executions: int, seed: int) -> None:
    """Fuzz the decode wrapper."""
    _run("fuzz", reports, lambda scratch: parts.fuzz(scratch, executions=executions, seed=seed))


@main.command()
@click.option("--runs", type=click.IntRange(4), default=200, show_default=True, help="At least.")
@click.option("--minutes", type=click.FloatRange(0), default=20.0, show_default=True, help="At least.")
@click.option("--tiles", type=click.IntRange(1), default=200, show_default=True, help="Drawn tiles a run.")
@click.pass_obj
def soak(reports: Path, runs: int, minutes: float, tiles: int) -> None:
    """Run again and again in one process."""
    _run("soak", reports, lambda scratch: parts.soak(scratch, runs=runs, minutes=minutes, tiles=tiles))


if __name__ == "__main__":
    main()
