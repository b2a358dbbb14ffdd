"""The page's section on drift: how far the run and its slides are from the training tiles, and what has moved."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from cervix_engine.drift.watch import Distance, DriftFinding
from cervix_engine.drift.words import TOO_FEW, moved_words, rarity
from cervix_engine.words import agreeing, counted

# Slides that are shown, the most distant first.
SHOWN_SLIDES = 20

_HEADS = ("tiles", "measured", "distance", "as far off by chance", "what moved")

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
    head = "".join(f'<th scope="col"{_kind(at)}>{name}</th>' for at, name in enumerate(_HEADS))
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
    cells = (f"{distance.tiles:,}", f"{distance.distance:.2f}", rarity(distance.share), escape(moved))
    row = "".join(f"<td{_kind(at)}>{cell}</td>" for at, cell in enumerate(cells, 1))
    return f'<tr><th scope="row"><bdi>{escape(name)}</bdi>{flag}</th>{row}</tr>'


def _kind(column: int) -> str:
    """Numbers stand right, and on a phone only distance and what moved are shown."""
    return ("", ' class="number wide"', ' class="number"', ' class="wide"', "")[column]


def _more(finding: DriftFinding) -> str:
    slides = finding.judged + finding.too_small
    if slides < 2:
        return ""
    drifted = len(finding.drifted_slides)
    lie = agreeing(drifted, "lies", "lie")
    words = f"{drifted} of {counted(finding.judged, 'slide')} {lie} further away than chance explains"
    small = f"; of {finding.too_small} more, too few tiles were measured" if finding.too_small else ""
    return f'<p class="note">{words}{small}.</p>'
