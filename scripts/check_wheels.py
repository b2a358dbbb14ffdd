"""Builds sdist and wheel, installs the wheel with `[cpu]` alone in clean environments, and runs a small bundle in each.

Usage: python scripts/check_wheels.py [--python python3.12]...

It runs in the project's own environment (`make setup`), which draws tiles and makes the bundle; the clean environments
have no TensorFlow. Without `--python`: every Python from 3.11 to 3.13 that is found. Everything lies in a
temporary folder. Needs a package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13")
ABSENT = ("tensorflow", "keras", "jinja2")


def run(*command: str | Path, cwd: Path | None = None, expect: int = 0) -> str:
    """What a command printed, on both streams.

    Raises:
        ClickException: it ended with another exit code than `expect`.
    """
    done = subprocess.run(command, cwd=cwd, env=_environment(), capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode != expect:
        shown = " ".join(map(str, command))
        raise click.ClickException(f"{shown} ended with {done.returncode}, expected {expect}:\n{said[-4000:]}")
    return said


def _environment() -> dict[str, str]:
    """This process's, without what would let a clean environment see other code or another bundle."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CERVIX_MODEL")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def build(folder: Path) -> Path:
    """The wheel, built from the sdist as a stranger would build it."""
    tools = folder / "tools"
    run(sys.executable, "-m", "venv", tools)
    run(tools / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "build")
    run(tools / "bin" / "python", "-m", "build", "--outdir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def make_bundle(folder: Path) -> None:
    """`tiles/` and `bundle/` in `folder`, with the project's own environment."""
    python, programs = sys.executable, Path(sys.executable).parent
    run(python, "-m", "cervix_train.synthetic", folder / "labelled", "--tiles", "120", "--slides", "12")
    run(python, "-m", "cervix_train.synthetic", folder / "tiles", "--tiles", "40", "--slides", "2", "--seed", "1")
    network = ("--weights", "none", "--backbone", "cnn", "--input-size", "32", "--epochs", "2")
    run(programs / "cervix-train", folder / "labelled", *network, "--out", folder / "bundle")
    run(programs / "cervix-export", "--model", folder / "bundle")


def check(python: str, wheel: Path, given: Path) -> Iterator[str]:
    """Install `wheel[cpu]` for `python` and run every command that needs no more; gives a line for each step."""
    with tempfile.TemporaryDirectory(prefix="cervix-clean-") as name:
        clean = Path(name)
        programs = clean / "env" / "bin"
        run(python, "-m", "venv", clean / "env")
        run(programs / "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[cpu]")
        yield run(programs / "cervix", "--version").strip()
        seen = "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, sys.argv[1:])))"
        run(programs / "python", "-c", seen, *ABSENT, cwd=clean)
        shutil.copytree(given / "bundle", clean / "bundle")
        shutil.copytree(given / "tiles", clean / "tiles")
        yield from _use(programs, clean)


def _use(programs: Path, clean: Path) -> Iterator[str]:
    def use(line: str, command: str, *arguments: str, expect: int = 0) -> str:
        """The line that has `line` in it, of what the command says."""
        said = run(programs / command, *arguments, cwd=clean, expect=expect)
        if not (found := [each for each in said.splitlines() if line in each]):
            raise click.ClickException(f"{command} did not say {line!r}:\n{said[-4000:]}")
        return found[-1].strip()

    model = ("--model", "bundle")
    run(programs / "cervix-parity", "--certify", *model, cwd=clean)
    yield use("auto takes", "cervix-doctor", *model)
    yield use("40 predicted", "cervix-batch", "tiles", *model, "--out", "preds.csv", "--hash", "--require-parity")
    yield use("as the run wrote it", "cervix-verify", "preds.csv", "--tiles", "tiles")
    yield use("GeoJSON", "cervix-report", "preds.csv", "--summary", "slides.csv", "--geojson", "qupath")
    yield use("labels match", "cervix-compare", "preds.csv", "preds.csv", "--labels", "tiles/manifest.csv")
    # Each refusal names the install.
    yield use("pip install '.[report]'", "cervix-report", "preds.csv", "--out", "report.html", expect=1)
    yield use("pip install '.[train]'", "cervix-train", "tiles", expect=1)
    run(programs / "pip", "install", "--quiet", "--disable-pip-version-check", "jinja2")
    yield use("report.html", "cervix-report", "preds.csv", "--tiles", "tiles", "--out", "report.html")


def found() -> list[str]:
    """An interpreter of each version that is here."""
    return [path for version in VERSIONS if (path := _interpreter(version))]


def _interpreter(version: str) -> str | None:
    """An interpreter of that version: this process's own, one on the PATH, or pyenv's, whose shims may lead nowhere."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates = [sys.executable, shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    return next((str(python) for python in candidates if python and _is(version, python)), None)


def _is(version: str, python: str | Path) -> bool:
    done = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.startswith(f"Python {version}.")


@click.command()
@click.option("--python", "pythons", multiple=True, help="Interpreter to check with; may be given more than once.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder to copy sdist and wheel to once all is well.")
def main(pythons: tuple[str, ...], keep: Path | None) -> None:
    """Build, install and run the wheel, as people who only run bundles do."""
    with tempfile.TemporaryDirectory(prefix="cervix-wheels-") as name:
        folder = Path(name)
        wheel = build(folder)
        click.echo(f"built {wheel.name}")
        make_bundle(folder)
        for python in pythons or found():
            click.echo(run(python, "--version").strip())
            for line in check(python, wheel, folder):
                click.echo(f"  {line}")
        if keep:
            shutil.copytree(wheel.parent, keep, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
