"""Writes the map of the rooms in docs/architecture.md: one line a module, each module's own first words.

Usage: python scripts/write_map.py [--check]
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("engine/cervix_engine", "edge/cervix_keras", "export/cervix_export", "train/cervix_train", "benchmarks")
BEGIN, END = "<!-- map: begin -->", "<!-- map: end -->"


def written(page: str) -> str:
    """The page with the map as the code is now."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{chr(10).join(_lines())}\n{END}{after}"


def _lines() -> Iterator[str]:
    for package in PACKAGES:
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        # The package's own modules first, then its rooms by name.
        for folder in sorted(folders, key=lambda folder: folder.relative_to(ROOT / package).parts):
            yield f"\n### `{folder.relative_to(ROOT).as_posix()}/`\n"
            yield f"{_first_words(folder / '__init__.py')}\n"
            for module in sorted(folder.glob("*.py")):
                if module.name != "__init__.py":
                    yield f"- `{module.name}` – {_first_words(module)}"


def _first_words(module: Path) -> str:
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


@click.command()
@click.option("--check", is_flag=True, help="Only say whether the page is up to date.")
def main(check: bool) -> None:
    """Write the map in docs/architecture.md."""
    page = PAGE.read_text(encoding="utf-8")
    if not check:
        PAGE.write_text(written(page), encoding="utf-8")
    elif written(page) != page:
        raise click.ClickException("docs/architecture.md is out of date: python scripts/write_map.py")


if __name__ == "__main__":
    main()
