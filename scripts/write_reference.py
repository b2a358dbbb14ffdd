"""Writes docs/commands.md from the commands themselves, so that it cannot differ from `--help`.

Usage: python scripts/write_reference.py [--check]
"""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import click

from cervix_engine.cli.umbrella import Umbrella, programs_among

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "commands.md"
HEAD = """# Commands

Written by `python scripts/write_reference.py` from the code; `make lint` says when it is out of date. Each command is a
program of its own, and `cervix batch` is another way to say `cervix-batch`. `--help` prints the same.

Completion of commands, options and files in bash (zsh and fish: `zsh_source`, `fish_source`):

```console
eval "$(_CERVIX_COMPLETE=bash_source cervix)"
```
"""


def reference() -> str:
    """The whole page, one section a command."""
    return HEAD + "".join(_section(script) for _, script in sorted(_scripts().items()))


def _scripts() -> dict[str, EntryPoint]:
    """The programs as pyproject.toml names them, installed or not."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    return {name: EntryPoint(name, target, "console_scripts") for name, target in named.items()}


def _section(script: EntryPoint) -> str:
    command: click.Command = script.load()
    if isinstance(command, Umbrella):
        command.programs = lambda: programs_among(_scripts().values())
    context = click.Context(command, info_name=script.name, terminal_width=100, **command.context_settings)
    return f"\n## {script.name}\n\n```text\n{command.get_help(context).strip()}\n```\n"


@click.command()
@click.option("--check", is_flag=True, help="Only say whether the page is up to date.")
def main(check: bool) -> None:
    """Write docs/commands.md."""
    text = reference()
    if not check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        raise click.ClickException("docs/commands.md is out of date: python scripts/write_reference.py")


if __name__ == "__main__":
    main()
