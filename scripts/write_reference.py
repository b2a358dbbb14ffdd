"""Writes docs/commands.md from the commands themselves, so that it cannot differ from `--help`.

Usage: python scripts/write_reference.py [--check]
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "commands.md"
HEAD = """# Commands

Written by `python scripts/write_reference.py` from the code; `make lint` says when it is out of date. Each command is a
program of its own. `--help` prints the same.

Completion in bash, here for `cervix-report` (zsh and fish: `zsh_source`, `fish_source`):

```console
eval "$(_CERVIX_REPORT_COMPLETE=bash_source cervix-report)"
```
"""


def reference() -> str:
    """The whole page, one section a command."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]\n")[2].splitlines()
    scripts = [line.split(" = ") for line in lines[: lines.index("")]]
    return HEAD + "".join(_section(name, target.strip('"')) for name, target in sorted(scripts))


def _section(name: str, target: str) -> str:
    module, _, function = target.partition(":")
    command: click.Command = getattr(import_module(module), function)
    context = click.Context(command, info_name=name, terminal_width=100, **command.context_settings)
    return f"\n## {name}\n\n```text\n{command.get_help(context).strip()}\n```\n"


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
