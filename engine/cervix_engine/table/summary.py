"""What a table says of each slide. A summary of tiles, never a diagnosis, and the file says so on every line."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cervix_engine.contract import Category
from cervix_engine.table.formats import write_csv
from cervix_engine.table.intervals import wilson
from cervix_engine.table.reader import Row

NOTE = "research use only: counts of tiles, not a diagnosis"

# Below these a slide's shares say little; the flag says which.
FEW_TILES = 30
MANY_FAILED_SHARE = 0.05
LOW_MEAN_CONFIDENCE = 0.6


@dataclass(frozen=True, slots=True)
class Share:
    """`count` of `total` tiles, with its 95 % interval."""

    count: int
    total: int

    @property
    def value(self) -> float:
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.count, self.total)


@dataclass(frozen=True, order=True, slots=True)
class Suspect:
    """A tile with its probability of being abnormal; the greater, the more suspicious, the earlier first."""

    probability: float
    before: int
    path: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class SlideSummary:
    """One slide.

    Attributes:
        tiles, failed: found, and those without a prediction; shares are of the predicted ones.
        classes: one share a class, in the model's order.
        abnormal: tiles that the operating point calls abnormal; where there is none, whose predicted class is.
        review: tiles that a person must see; None where there is no operating point.
        mean_abnormal: mean probability of the abnormal classes together.
        suspects: the tiles with the largest such probability, the most suspicious first.
        flags: what makes the numbers uncertain, such as `few_tiles` or `blank 12`.
    """

    slide_id: str
    tiles: int
    failed: int
    classes: tuple[Share, ...]
    abnormal: Share
    review: Share | None
    mean_abnormal: float
    mean_confidence: float
    suspects: tuple[Suspect, ...]
    flags: tuple[str, ...]


class _Totals:
    """A slide's running sums. There may be as many as tiles, so it holds no more than it must."""

    __slots__ = (
        *("abnormal", "abnormal_sum", "confidence_sum", "counts", "failed", "quality", "review", "suspects", "tiles"),
    )

    def __init__(self, classes: int) -> None:
        self.tiles = self.failed = self.abnormal = self.review = 0
        self.counts = [0] * classes
        self.confidence_sum = self.abnormal_sum = 0.0
        self.suspects: list[tuple[float, int, str]] = []
        self.quality: Counter[str] | None = None


class SlideSummaries:
    """Gathers rows, in one pass, into one summary a slide.

    Args:
        class_names, categories: in the model's order.
        top: how many suspects a slide keeps.
        is_decided: whether rows hold the decisions of an operating point.

    Attributes:
        drifted: slides that the run found unlike the training tiles.
    """

    def __init__(
        self, class_names: Sequence[str], categories: Sequence[Category], *, top: int = 5, is_decided: bool = False
    ) -> None:
        self.class_names = tuple(class_names)
        self.is_decided = is_decided
        self._index = {name: at for at, name in enumerate(class_names)}
        self._abnormal = [at for at, category in enumerate(categories) if category == "abnormal"]
        self._top = top
        self._slides: dict[str, _Totals] = {}
        self.drifted: frozenset[str] = frozenset()

    def add(self, row: Row) -> float:
        """Count a row; returns its probability of being abnormal, 0 for a failed one."""
        totals = self._slides.get(row.slide_id)
        if totals is None:
            totals = self._slides[row.slide_id] = _Totals(len(self.class_names))
        totals.tiles += 1
        if row.quality:
            totals.quality = totals.quality or Counter()
            totals.quality.update(row.quality)
        if row.pred is None:
            totals.failed += 1
            return 0.0
        probability = row.abnormal_sum(self._abnormal)
        called = self._index[row.pred]
        totals.counts[called] += 1
        totals.abnormal += called in self._abnormal if row.abnormal is None else row.abnormal
        totals.review += bool(row.review)
        totals.confidence_sum += row.confidence
        totals.abnormal_sum += probability
        keep_largest(totals.suspects, (probability, -row.number, row.path), self._top)
        return probability

    def __len__(self) -> int:
        return len(self._slides)

    def __iter__(self) -> Iterator[SlideSummary]:
        """The slides, in order of their names."""
        for slide_id in sorted(self._slides):
            yield self._summary(slide_id, self._slides[slide_id])

    def _summary(self, slide_id: str, totals: _Totals) -> SlideSummary:
        predicted = totals.tiles - totals.failed
        return SlideSummary(
            slide_id=slide_id,
            tiles=totals.tiles,
            failed=totals.failed,
            classes=tuple(Share(count, predicted) for count in totals.counts),
            abnormal=Share(totals.abnormal, predicted),
            review=Share(totals.review, predicted) if self.is_decided else None,
            mean_abnormal=totals.abnormal_sum / predicted if predicted else 0.0,
            mean_confidence=totals.confidence_sum / predicted if predicted else 0.0,
            suspects=tuple(Suspect(*item) for item in sorted(totals.suspects, reverse=True)),
            flags=(*_flags(totals, predicted), *(["drift"] if slide_id in self.drifted else [])),
        )


def keep_largest(heap: list[tuple[float, int, str]], item: tuple[float, int, str], count: int) -> None:
    """Keep the `count` largest items of a stream in `heap`."""
    if len(heap) < count:
        heapq.heappush(heap, item)
    elif count and item > heap[0]:
        heapq.heapreplace(heap, item)


def _flags(totals: _Totals, predicted: int) -> Iterator[str]:
    if predicted < FEW_TILES:
        yield "few_tiles"
    if totals.failed > MANY_FAILED_SHARE * totals.tiles:
        yield "many_failed"
    if predicted and totals.confidence_sum / predicted < LOW_MEAN_CONFIDENCE:
        yield "low_confidence"
    for name, count in sorted((totals.quality or {}).items()):
        yield f"{name} {count}"


def write_summary(path: Path, slides: SlideSummaries, *, top: int = 5) -> None:
    """Write one line a slide as CSV, atomically.

    Raises:
        OutputError: it cannot be written.
    """
    write_csv(path, _header(slides, top), (_cells(slide, top) for slide in slides))


def _header(slides: SlideSummaries, top: int) -> list[str]:
    counted = (*slides.class_names, "abnormal", *(["review"] if slides.is_decided else []))
    shares = [f"{kind}_{name}" for name in counted for kind in ("tiles", "share", "low", "high")]
    suspects = [column for rank in range(1, top + 1) for column in (f"suspect_{rank}", f"suspect_{rank}_probability")]
    means = ["mean_abnormal_probability", "mean_confidence"]
    return ["slide_id", "tiles", "failed", *shares, *means, "flags", *suspects, "note"]


def _cells(slide: SlideSummary, top: int) -> list[str]:
    cells = [slide.slide_id, str(slide.tiles), str(slide.failed)]
    predicted = slide.tiles > slide.failed
    for share in filter(None, (*slide.classes, slide.abnormal, slide.review)):
        numbers = (share.value, *share.interval) if predicted else ()
        # A slide without a single prediction has no shares: empty cells, never zeros.
        cells += [str(share.count), *(f"{number:.4f}" for number in numbers), *[""] * (3 - len(numbers))]
    cells += [f"{slide.mean_abnormal:.4f}", f"{slide.mean_confidence:.4f}"] if predicted else ["", ""]
    cells.append("; ".join(slide.flags))
    for rank in range(top):
        suspect = slide.suspects[rank] if rank < len(slide.suspects) else None
        cells += [suspect.path, f"{suspect.probability:.4f}"] if suspect else ["", ""]
    return [*cells, NOTE]
