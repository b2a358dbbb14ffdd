"""`cervix-doctor`: what this machine can run, and what it lacks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import model_option, option

if TYPE_CHECKING:
    from cervix_engine.doctor import Diagnosis, Verdict


@click.command(cls=CervixCommand)
@model_option("look at")
@option("-v", "--verbose", is_flag=True, help="Also list every package, and every way to run the bundle.")
@option("--json", "as_json", is_flag=True, help="Print the findings as JSON on standard output.")
def main(model: Path | None, verbose: bool, as_json: bool) -> int:
    """Say what hardware and runtimes are here, what `--precision auto` takes and why, and what is missing.

    Where something is wrong, every way to run the bundle is listed. Exit codes:
    0 the bundle can be run here, 1 it cannot.
    """
    from cervix_engine.bundle.bundle import default_bundle
    from cervix_engine.doctor import diagnose

    diagnosis = diagnose(model or default_bundle())
    if as_json:
        click.echo(json.dumps(diagnosis.to_json(), indent=2, allow_nan=False))
    else:
        for line in _details(diagnosis) if verbose else _findings(diagnosis):
            click.echo(line)
    return 0 if diagnosis.can_run else 1


def _findings(diagnosis: Diagnosis) -> Iterator[str]:
    here = diagnosis.machine
    machine = (f"cervix {here['cervix']}", f"Python {here['python']}", here["system"], f"{here['cores']} cores")
    yield f"machine: {', '.join([*machine, here['memory'], here['cpu']])}"
    yield from (f"gpu: {gpu}" for gpu in diagnosis.gpus or (_NO_GPU,))
    yield f"bundle: {diagnosis.bundle}"
    certified = [way for way in diagnosis.ways if way.tiles_per_sec]
    yield from _ways(diagnosis, certified if diagnosis.is_sound else diagnosis.ways)
    if diagnosis.is_sound:
        yield from _installable(diagnosis)
    else:
        yield from _remedies(diagnosis)
    yield "more: cervix-doctor --verbose lists every package, and every way to run the bundle"


def _details(diagnosis: Diagnosis) -> Iterator[str]:
    yield "machine"
    yield from (f"  {name:<24} {value}" for name, value in diagnosis.machine.items())
    yield from (f"  {'gpu':<24} {gpu}" for gpu in diagnosis.gpus or (_NO_GPU,))
    yield "packages"
    yield from (f"  {package.name:<24} {package.version or 'not installed'}" for package in diagnosis.packages)
    yield "bundle"
    yield f"  {diagnosis.bundle}"
    yield "ways to run it"
    yield from _ways(diagnosis, diagnosis.ways)
    yield from _remedies(diagnosis)


_NO_GPU = "none that nvidia-smi lists"


def _ways(diagnosis: Diagnosis, shown: Iterable[Verdict]) -> Iterator[str]:
    for way in shown:
        rate = f" ({way.tiles_per_sec:.1f} tiles/s when certified)" if way.tiles_per_sec else ""
        yield f"{'->' if way.chosen else '  '}{way.backend + ' ' + way.precision:<30} {way.reason}{rate}"
    yield f"auto takes: {diagnosis.auto or 'nothing'}"


def _installable(diagnosis: Diagnosis) -> Iterator[str]:
    """One line for all that runs need not; a runtime that is missing keeps its own, since not all go together."""
    asked = {install.split("[")[1].split("]")[0]: (what, install) for what, install in diagnosis.missing}
    yield from (
        f"missing: {what}   {install}" for what, install in (asked.pop(x) for x in ("cpu", "gpu") if x in asked)
    )
    if asked:
        purposes = ", ".join(what.partition(": ")[2] for what, _ in asked.values())
        yield f"not installed, {purposes}: pip install '.[{','.join(asked)}]'"


def _remedies(diagnosis: Diagnosis) -> Iterator[str]:
    yield from (f"problem: {problem}" for problem in diagnosis.problems)
    yield from (f"missing: {what}   {line}" for what, line in diagnosis.missing)
