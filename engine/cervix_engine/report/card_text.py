"""A model card's sections as Markdown, or as one HTML page."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #8886 }
p, li, td { overflow-wrap: anywhere }
"""

# What begins markup in Markdown; within a word, an underscore does not.
_MARKUP = re.compile(r"[\\`*\[\]<>#|]|(?<!\w)_|_(?!\w)")


@dataclass(frozen=True, slots=True)
class CardTable:
    """A table: its heads, and rows of as many cells."""

    heads: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, slots=True)
class Bullets:
    """Sentences below one another."""

    items: Sequence[str]


Block = str | CardTable | Bullets


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it: paragraphs, tables, lists."""

    title: str
    blocks: Sequence[Block]


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The card as GitHub's Markdown."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_markdown(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The card as one page that loads nothing."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [_html(block) for block in section.blocks]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return _plain(block)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_plain(item)}" for item in block.items)
    lines = [block.heads, ["---"] * len(block.heads), *block.rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{html.escape(block)}</p>"
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in block.items)}</ul>"
    heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in block.heads)
    rows = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in block.rows)
    inner = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{inner}</tbody></table></div>'


def _plain(words: str) -> str:
    # Names of files and classes come from outside: none may begin a list, a link or markup.
    return " ".join(_MARKUP.sub(r"\\\g<0>", words).split())


def _cell(cell: object) -> str:
    return _plain(str(cell))
