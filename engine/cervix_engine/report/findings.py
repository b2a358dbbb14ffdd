"""What a report shows, gathered from the table in one pass and in bounded memory."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from cervix_engine.contract import Category
from cervix_engine.report.slide_map import SlidePoints
from cervix_engine.table.coordinates import Locating
from cervix_engine.table.reader import Row, Table
from cervix_engine.table.summary import SlideSummaries

BINS = 20
EXAMPLES = 5


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
        points: predicted tiles with a location, by slide.
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
    suspicious: list[Pick] = field(default_factory=list)
    uncertain: list[Pick] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def predicted(self) -> int:
        return self.tiles - self.failed


def gather(table: Table, *, categories: tuple[Category, ...], locator: Locating | None, top: int) -> Findings:
    """Read the table once. `top` tiles go into each half of the gallery.

    Raises:
        UsageError: a row is not what `cervix-batch` writes.
    """
    findings = Findings(table, categories, SlideSummaries(table.class_names, categories, is_decided=table.is_decided))
    findings.classes = [0] * len(table.class_names)
    index = {name: at for at, name in enumerate(table.class_names)}
    suspicious, uncertain = _Best(top), _Best(top)
    for row in table.rows():
        findings.tiles += 1
        abnormal = findings.slides.add(row)
        if row.quality:
            findings.quality.update(row.quality)
        if row.pred is None or row.category is None:
            _count_failure(findings, row)
            continue
        findings.classes[index[row.pred]] += 1
        findings.histogram[min(BINS - 1, int(row.confidence * BINS))][row.category] += 1
        second, first = sorted(row.probabilities)[-2:]
        suspicious.offer(abnormal, row)
        uncertain.offer(second - first, row)
        if locator is not None and (location := locator(row)) is not None:
            points = findings.points.get(location.slide_id) or findings.points.setdefault(
                location.slide_id, SlidePoints()
            )
            points.add(location.box, abnormal)
    findings.suspicious = [_pick(row, categories) for row in suspicious.rows()]
    findings.uncertain = [_pick(row, categories) for row in uncertain.rows()]
    return findings


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
