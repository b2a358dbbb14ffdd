"""From the measured tiles of a run to what is said of it: how far off it is as a whole, and each of its slides.

What a shard's tiles add is sums of whole numbers, by slide, which lie in the journal with the shard: they give the same
total in whatever order and portions tiles were predicted, so a run that went on finds what an uninterrupted one finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.drift.measures import ANSWER, BY_NAME, PIXELS, measure_answers, step_of
from cervix_engine.drift.reference import LIMIT_SHARE, DriftReference, Floats, Panel

# Scores are summed in thousandths.
_UNIT = 1000
# The parts in what may be a false alarm, of 1, that answers and known changes of colour have; images have the rest.
_ANSWERS_PART, _COLOURS_PART = 0.1, 0.4
# A measure has moved where chance would not have moved it as far: in units of its root mean square.
MOVED_BEYOND, MOST_MOVED = 3.0, 4
# Slides that a record names, the most distant first; all are counted.
MOST_SLIDES = 1000

_COLUMNS = {measure.name: at for at, measure in enumerate((*PIXELS, *ANSWER))}

# By slide: the number of tiles, then their summed scores, of images, answers and colours one after the other.
SlideSums = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class MeasuredTile:
    """What is known of one measured tile: the slide, as its row names it, its measures and probabilities."""

    slide_id: str
    measures: tuple[float, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """A measure or known change that chance does not explain: by how many deviations of tiles its mean has moved."""

    measure: str
    shift: float

    @property
    def words(self) -> str:
        """Such as `softer at 4 px (-1.9)`."""
        known = BY_NAME[self.measure]
        return f"{known.higher if self.shift > 0 else known.lower} ({self.shift:+.1f})"


@dataclass(frozen=True, slots=True)
class Distance:
    """How far some tiles are from those that the model learned from.

    Attributes:
        tiles: measured ones.
        distance: 1 is the limit that 5 % of as many tiles of the same data exceed.
        share: of as many tiles of the same data, as often would be as far off.
        drifted: whether that is too rare to be chance, among all that the run is asked.
        moved: the measures that have moved most; empty where only all together have.
    """

    tiles: int
    distance: float
    share: float
    drifted: bool
    moved: tuple[Moved, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "moved": [asdict(moved) for moved in self.moved]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Distance:
        return cls(**{**data, "moved": tuple(Moved(**item) for item in data["moved"])})


@dataclass(frozen=True, slots=True)
class DriftFinding:
    """What a run's tiles are like, as a population.

    Attributes:
        step: one in how many tiles was measured.
        run: all of them; None where too few were measured to say anything.
        slides: those of enough measured tiles, the most distant first, at most `MOST_SLIDES`.
        judged, too_small: how many slides have enough measured tiles, and how many have not.
    """

    step: int
    run: Distance | None
    slides: dict[str, Distance]
    judged: int
    too_small: int

    @property
    def drifted_slides(self) -> tuple[str, ...]:
        return tuple(name for name, distance in self.slides.items() if distance.drifted)

    @property
    def drifted(self) -> bool:
        return bool((self.run and self.run.drifted) or self.drifted_slides)

    def to_json(self) -> dict[str, Any]:
        run, slides = self.run and self.run.to_json(), {name: item.to_json() for name, item in self.slides.items()}
        return {**asdict(self), "run": run, "slides": slides}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DriftFinding:
        slides = {name: Distance.from_json(item) for name, item in data["slides"].items()}
        run = Distance.from_json(data["run"]) if data["run"] else None
        return cls(data["step"], run, slides, data["judged"], data["too_small"])


@dataclass(frozen=True, slots=True)
class DriftWatch:
    """Compares the tiles of one run with a bundle's reference.

    Attributes:
        reference: of the bundle.
        step: one in how many tiles is measured.
    """

    reference: DriftReference
    step: int

    @classmethod
    def of_run(cls, reference: DriftReference | None, *, found: int) -> DriftWatch | None:
        """Of a run of so many tiles; None where the bundle has no reference."""
        return cls(reference, step_of(found)) if reference else None

    def sums(self, tiles: Sequence[MeasuredTile]) -> dict[str, list[int]]:
        """What these tiles add, by slide."""
        if not tiles:
            return {}
        scores = self._scores(tiles)
        found: dict[str, list[int]] = {}
        for tile, row in zip(tiles, np.rint(scores * _UNIT).astype(np.int64), strict=True):
            _add(found, tile.slide_id, [1, *row.tolist()])
        return found

    def _scores(self, tiles: Sequence[MeasuredTile]) -> Floats:
        probabilities = np.array([tile.probabilities for tile in tiles], np.float32)
        classes = probabilities.argmax(axis=1)
        pixels = np.array([tile.measures for tile in tiles], np.float64)
        values = np.concatenate([pixels, measure_answers(probabilities)], axis=1)
        scores = [
            panel.scale.scores(values[:, [_COLUMNS[name] for name in panel.scale.measures]], classes)
            for panel, _ in self._panels
        ]
        return np.concatenate(scores, axis=1)

    @property
    def _panels(self) -> list[tuple[Panel, float]]:
        """Those of the reference, each with its part in what may be a false alarm."""
        images, answers, colours = self.reference.images, self.reference.answers, self.reference.colours
        parts = [(answers, _ANSWERS_PART), (colours, _COLOURS_PART)]
        others = [(panel, part) for panel, part in parts if panel]
        return [(images, 1 - sum(part for _, part in others)), *others]

    def finding(self, sums: Iterable[SlideSums]) -> DriftFinding:
        """What all sums of a run say."""
        slides: dict[str, list[int]] = {}
        for part in sums:
            for name, row in part.items():
                _add(slides, name, row)
        fewest = self.reference.images.fewest_tiles
        if sum(row[0] for row in slides.values()) < fewest:
            return DriftFinding(self.step, None, {}, 0, len(slides))
        judged = {name: row for name, row in slides.items() if row[0] >= fewest}
        # One slide is the run. Of more, run and slides have half of what may be a false alarm each.
        several = len(slides) > 1 and len(judged) > 0
        total = np.array(list(slides.values()), np.int64).sum(axis=0)
        run = self._distance(total, LIMIT_SHARE / 2 if several else LIMIT_SHARE)
        of_slides = {
            name: self._distance(np.array(row), LIMIT_SHARE / 2 / len(judged)) if several else run
            for name, row in judged.items()
        }
        ranked = sorted(of_slides.items(), key=lambda item: (item[1].share, -item[1].distance, item[0]))
        return DriftFinding(self.step, run, dict(ranked[:MOST_SLIDES]), len(judged), len(slides) - len(judged))

    def _distance(self, sums: npt.NDArray[Any], alarm: float) -> Distance:
        tiles, means = int(sums[0]), sums[1:] / (_UNIT * int(sums[0]))
        distances, shares, moved, like = [], [], [], []
        for panel, part in self._panels:
            of_panel, means = np.split(means, [len(panel.scale.measures) + panel.scale.axes.shape[1]])
            distance = panel.distance(of_panel, tiles)
            distances.append(distance / panel.limit(part * LIMIT_SHARE, tiles))
            shares.append(panel.share(distance, tiles) / part)
            if panel.changes:
                like += _like(panel, of_panel, tiles)
            else:
                moved += _moved(panel, of_panel, tiles)
        # The known change that is most alike is named where no measure by itself says what has happened.
        most = sorted(moved, reverse=True, key=_far)[:MOST_MOVED] or sorted(like, reverse=True, key=_far)[:1]
        share = min(1.0, *shares)
        return Distance(
            tiles, round(max(distances), 3), float(f"{share:.3g}"), share < alarm, tuple(item for _, item in most)
        )


def _far(item: tuple[float, Moved]) -> float:
    return item[0]


def _moved(panel: Panel, means: Floats, tiles: int) -> list[tuple[float, Moved]]:
    """Each moved measure with how far it lies beyond chance."""
    beyond = np.abs(panel.by_chance(means, tiles))
    names = panel.scale.measures
    return [
        (float(beyond[at]), Moved(name, round(float(means[at]), 2)))
        for at, name in enumerate(names)
        if beyond[at] > MOVED_BEYOND
    ]


def _like(panel: Panel, means: Floats, tiles: int) -> list[tuple[float, Moved]]:
    """Each known change that tiles look like, with how far beyond chance."""
    first = len(panel.scale.measures)
    beyond = panel.by_chance(means, tiles)[first:]
    return [
        (float(beyond[at]), Moved(name, round(float(means[first + at]), 2)))
        for at, name in enumerate(panel.changes)
        if beyond[at] > MOVED_BEYOND
    ]


def _add(slides: dict[str, list[int]], name: str, row: Sequence[int]) -> None:
    held = slides.get(name)
    slides[name] = [a + b for a, b in zip(held, row, strict=True)] if held else list(row)
