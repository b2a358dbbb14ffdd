"""Times each command of README's path, from a fresh clone to the first report, as a newcomer would type them.

    python scripts/time_first_hour.py [--tiles FOLDER] [--tutorial] [--json FILE]

The committed state of this checkout is cloned into a temporary folder, `make demo` makes an environment there as README
says, and README's command for a folder of one's own makes the report: of FOLDER, else of the demo's drawn tiles.
`--tutorial` goes on with every command of docs/tutorial.md. Packages come from where pip takes them: from its cache,
where they are in there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OWN_TILES = "my/tiles"

# What make runs its lines with: bash, that notes how long each of them took.
SHELL = """#!/bin/bash
began=$EPOCHREALTIME
/bin/bash -e "$@"
code=$?
printf '%s\\t%s\\t%s\\n' "$began" "$EPOCHREALTIME" "${*: -1}" >> "$FIRST_HOUR_TIMES"
exit $code
"""


def block(page: Path, wanted: str) -> list[str]:
    """The commands of the page's first block of commands that has `wanted` in it."""
    blocks: list[str] = CONSOLE.findall(page.read_text(encoding="utf-8"))
    return next(text for text in blocks if wanted in text).splitlines()


class Stopwatch:
    """Runs commands, and keeps what each of them took.

    Attributes:
        taken: (seconds, command) in the order of their ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: list[tuple[float, str]] = []

    def run(self, command: str, *, within: Path, environment: dict[str, str] | None = None) -> None:
        """Run one command line by bash; whatever it prints is shown."""
        began = time.monotonic()
        subprocess.run(["/bin/bash", "-ec", command], cwd=within, env=environment, check=True)
        self._took(time.monotonic() - began, command)

    def make(self, target: str, *, within: Path) -> None:
        """Run `make target`, each of its lines timed."""
        shell, times = self.folder / "shell", self.folder / "times"
        shell.write_text(SHELL, encoding="utf-8")
        shell.chmod(0o755)
        times.write_text("", encoding="utf-8")
        environment = {**os.environ, "FIRST_HOUR_TIMES": str(times)}
        subprocess.run(["/usr/bin/env", "make", target, f"SHELL={shell}"], cwd=within, env=environment, check=True)
        for line in times.read_text(encoding="utf-8").splitlines():
            start, end, command = line.split("\t", maxsplit=2)
            self._took(float(end) - float(start), command)

    def _took(self, seconds: float, command: str) -> None:
        click.echo(f"=== {seconds:.1f} s: {command}")
        self.taken.append((seconds, command))


def type_tutorial(watch: Stopwatch, clone: Path, folder: Path) -> None:
    """Type the tutorial's commands in an empty folder."""
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CERVIX_")}
    environment["PATH"] = f"{clone / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"
    page = (clone / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for command in "".join(CONSOLE.findall(page)).splitlines():
        if exported := re.fullmatch(r"export (\w+)=\$PWD/(\w+)", command):
            environment[exported[1]] = str(folder / exported[2])
        else:
            watch.run(command, within=folder, environment=environment)


@click.command()
@click.option("--tiles", type=click.Path(path_type=Path, exists=True, resolve_path=True), help="Tiles of one's own.")
@click.option("--tutorial", is_flag=True, help="Also time every command of docs/tutorial.md.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="File for the figures.")
def main(tiles: Path | None, tutorial: bool, report: Path | None) -> None:
    """Time README's path from a clone to the first report."""
    with tempfile.TemporaryDirectory() as name:
        watch, clone = Stopwatch(Path(name)), Path(name) / "cervix"
        watch.run(f"git clone --quiet --depth 1 {shlex.quote(ROOT.as_uri())} cervix", within=Path(name))
        demo, *_ = block(clone / "README.md", "make demo")
        watch.make(demo.removeprefix("make "), within=clone)
        own = tiles or clone / "demo" / "unseen" / "tiles"
        for command in block(clone / "README.md", OWN_TILES):
            watch.run(command.replace(OWN_TILES, shlex.quote(str(own))), within=clone)
        if not (clone / "report.html").is_file():
            raise click.ClickException("no report.html came of it")
        if tutorial:
            type_tutorial(watch, clone, Path(name) / "tutorial")
    total = sum(seconds for seconds, _ in watch.taken)
    click.echo("\n".join(f"{seconds:8.1f} s  {command}" for seconds, command in [*watch.taken, (total, "in all")]))
    if report:
        figures = [{"seconds": seconds, "command": command} for seconds, command in watch.taken]
        report.write_text(json.dumps({"total_s": total, "commands": figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
