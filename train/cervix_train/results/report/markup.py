"""Pieces of a page: text that is safe in HTML, numbers as a reader takes them, tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from datetime import datetime


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    total: Iterable[Sequence[object]] = (),
    words: Sequence[int] = (),
    chosen: int | None = None,
) -> str:
    """A cell that is a pair has its second part in small letters below the first.

    `total` rows and the `chosen` one are set apart; the first column and those in `words` hold words.
    """
    kinds = [' class="number"' if column and column not in words else "" for column in range(len(head))]

    def line(cells: Sequence[object], *, kind: str) -> str:
        named = f'<th scope="row">{text(cells[0])}</th>'
        inner = "".join(f"<td{mark}>{_cell(cell)}</td>" for mark, cell in zip(kinds[1:], cells[1:], strict=True))
        return f"<tr{kind}>{named}{inner}</tr>"

    top = "".join(f'<th scope="col"{mark}>{text(name)}</th>' for mark, name in zip(kinds, head, strict=True))
    body = [line(row, kind=' class="chosen"' if at == chosen else "") for at, row in enumerate(rows)]
    body += [line(row, kind=' class="total"') for row in total]
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _cell(value: object) -> str:
    return f"{text(value[0])}<small>{text(value[1])}</small>" if isinstance(value, tuple) else text(value)


def text(value: object) -> str:
    # File and class names come from outside and must not become markup.
    return html.escape(str(value))


def sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def plain(value: object) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list) else str(value)


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def range_percent(interval: Sequence[float]) -> str:
    return " to ".join(f"{100 * value:.1f}" for value in interval)


def range4(interval: Sequence[float]) -> str:
    return " to ".join(f"{value:.4f}" for value in interval)


def moment(time: str) -> str:
    """A time in ISO 8601, UTC, as a person reads it."""
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M:%S UTC")
