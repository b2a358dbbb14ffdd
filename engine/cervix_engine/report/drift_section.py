"""The page's section on drift: how far the run and its slides are from the training tiles, and what has moved."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from cervix_engine.drift.watch import Distance, DriftFinding
from cervix_engine.drift.words import TOO_FEW, moved_words, rarity

# Slides that are shown, the most distant first.
SHOWN_SLIDES = 20

_NOTE = (
    "Tiles, {every}, were compared with the training tiles of the class that each was given. 1 is the limit: 5 % of as "
    "many tiles of the training data lie beyond it. A run that lies beyond it may still be right, but what was "
    "measured on the model's own data need not hold for it."
)


def drift_section(finding: DriftFinding) -> str:
    """HTML, all names escaped."""
    if finding.run is None:
        return _section(f"<p>{TOO_FEW.capitalize()}.</p>")
    every = "all of them" if finding.step == 1 else f"one in {finding.step}"
    heads = ("", "measured tiles", "distance", "as far off by chance", "what moved")
    head = "".join(f'<th scope="col"{_number(at)}>{name}</th>' for at, name in enumerate(heads))
    rows = "".join(_rows(finding, finding.run))
    body = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return _section(f'<p class="note">{_NOTE.format(every=every)}</p>{body}{_more(finding)}')


def _section(body: str) -> str:
    return f'<section class="panel" id="drift">\n  <h2>Drift</h2>\n  {body}\n</section>\n'


def _rows(finding: DriftFinding, run: Distance) -> Iterator[str]:
    yield _row("all tiles", run)
    if finding.judged + finding.too_small > 1:
        for name, distance in list(finding.slides.items())[:SHOWN_SLIDES]:
            yield _row(name, distance)


def _row(name: str, distance: Distance) -> str:
    flag = ' <span class="flag">drift</span>' if distance.drifted else ""
    moved = moved_words(distance) if distance.drifted else "nothing beyond chance"
    numbers = (f"{distance.tiles:,}", f"{distance.distance:.2f}")
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return (
        f'<tr><th scope="row"><bdi>{escape(name)}</bdi>{flag}</th>{cells}<td>{rarity(distance.share)}</td>'
        f"<td>{escape(moved)}</td></tr>"
    )


def _number(column: int) -> str:
    return ' class="number"' if column in (1, 2) else ""


def _more(finding: DriftFinding) -> str:
    slides = finding.judged + finding.too_small
    if slides < 2:
        return ""
    words = f"{len(finding.drifted_slides)} of {finding.judged} slides lie further away than chance explains"
    small = f"; of {finding.too_small} more, too few tiles were measured" if finding.too_small else ""
    return f'<p class="note">{words}{small}.</p>'
