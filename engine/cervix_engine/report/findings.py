"""What a report shows, gathered from the table in one pass and in bounded memory."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from cervix_engine.contract import Category
from cervix_engine.report.slide_map import SlidePoints
from cervix_engine.table.coordinates import Locating
from cervix_engine.table.names import unescape_name
from cervix_engine.table.reader import Row, Table
from cervix_engine.table.summary import SlideSummaries

BINS = 20
EXAMPLES = 5
# Of the failed tiles of a table, so many are shown on maps.
MAX_PLACED_FAILURES = 100_000


@dataclass(frozen=True, slots=True)
class Pick:
    """A tile for the gallery: how abnormal it looks, and how far the first class is ahead of the second."""

    row: Row
    abnormal: float
    margin: float


@dataclass(slots=True)
class Findings:
    """Counts of a whole table, and the few tiles that deserve a look.

    Attributes:
        classes: predicted tiles by class, in the model's order.
        histogram: predicted tiles by bin of confidence and category.
        failures: failed tiles by kind; `examples` names a few of each.
        quality: flagged tiles by flag.
        points: tiles with a location, by slide; failed ones as far as their names say where they lie.
        abnormal, review: tiles that the operating point calls so, and that a person must see.
        suspicious, uncertain: the gallery, worst first.
    """

    table: Table
    categories: tuple[Category, ...]
    slides: SlideSummaries
    tiles: int = 0
    classes: list[int] = field(default_factory=list)
    histogram: list[Counter[str]] = field(default_factory=lambda: [Counter() for _ in range(BINS)])
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    quality: Counter[str] = field(default_factory=Counter)
    points: dict[str, SlidePoints] = field(default_factory=dict)
    abnormal: int = 0
    review: int = 0
    suspicious: list[Pick] = field(default_factory=list)
    uncertain: list[Pick] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def predicted(self) -> int:
        return self.tiles - self.failed

    def points_on(self, slide: str) -> SlidePoints:
        """The points of a slide, to add to."""
        found = self.points.get(slide)
        if found is None:
            found = self.points[slide] = SlidePoints()
        return found


def gather(
    table: Table,
    *,
    categories: tuple[Category, ...],
    locator: Locating | None,
    top: int,
    locate_failed: Locating | None = None,
) -> Findings:
    """Read the table once. `top` tiles go into each half of the gallery.

    `locator` knows where predicted tiles lie, `locate_failed` where failed ones do, of which a table says nothing.

    Raises:
        UsageError: a row is not what `cervix-batch` writes.
    """
    findings = Findings(table, categories, SlideSummaries(table.class_names, categories, is_decided=table.is_decided))
    findings.classes = [0] * len(table.class_names)
    suspicious, uncertain = _Best(top), _Best(top)
    lost: list[Row] = []
    for row in table.rows():
        findings.tiles += 1
        abnormal = findings.slides.add(row)
        findings.quality.update(row.quality)
        if row.pred is None or row.category is None:
            _count_failure(findings, row)
            if len(lost) < MAX_PLACED_FAILURES:
                lost.append(row)
            continue
        second, first = sorted(row.probabilities)[-2:]
        suspicious.offer(abnormal, row)
        uncertain.offer(second - first, row)
        _count(findings, row, row.category)
        if locator is not None and (location := locator(row)) is not None:
            findings.points_on(location.slide_id).add(location.box, abnormal)
    if locate_failed is not None:
        _place_failures(findings, lost, locate_failed)
    findings.suspicious = [_pick(row, categories) for row in suspicious.rows()]
    findings.uncertain = [_pick(row, categories) for row in uncertain.rows()]
    return findings


def _count(findings: Findings, row: Row, category: Category) -> None:
    findings.abnormal += bool(row.abnormal)
    findings.review += bool(row.review)
    findings.classes[findings.table.class_names.index(str(row.pred))] += 1
    findings.histogram[min(BINS - 1, int(row.confidence * BINS))][category] += 1


def _place_failures(findings: Findings, rows: list[Row], locator: Locating) -> None:
    """Put failed tiles where their names say, at the size of the slide's other tiles: nobody knows their own."""
    sizes = {slide: size for slide, found in findings.points.items() if (size := found.usual_size)}
    usual = next(iter(sizes.values()), None)
    for row in rows:
        name = unescape_name(row.path)
        found = locator.locate(name, row.slide_id, 1, 1)
        if found is None or usual is None:
            continue
        # A run named the slide of failed tiles too; where names alone place tiles, they name it.
        slide = row.slide_id if row.slide_id in sizes else found.slide_id
        location = locator.locate(name, slide, *sizes.get(slide, usual))
        assert location is not None
        findings.points_on(slide).add_failed(location.box)


def _count_failure(findings: Findings, row: Row) -> None:
    kind = (row.error or "unknown").partition(":")[0]
    findings.failures[kind] += 1
    examples = findings.examples.setdefault(kind, [])
    if len(examples) < EXAMPLES:
        examples.append(row.path)


def _pick(row: Row, categories: tuple[Category, ...]) -> Pick:
    second, first = sorted(row.probabilities)[-2:]
    abnormal = row.abnormal_sum([at for at, category in enumerate(categories) if category == "abnormal"])
    return Pick(row, abnormal, first - second)


class _Best:
    """The rows with the highest scores of a stream; of equal ones the earliest."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[float, int, Row]] = []

    def offer(self, score: float, row: Row) -> None:
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, (score, -row.number, row))
        elif self._count and score > self._heap[0][0]:
            heapq.heapreplace(self._heap, (score, -row.number, row))

    def rows(self) -> list[Row]:
        return [row for _, _, row in sorted(self._heap, reverse=True)]
