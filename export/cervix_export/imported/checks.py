"""Whether a model, with what is stated of it, answers the golden tiles as it should.

Against answers of the pipeline that the model comes from, a wrong mean, order of channels or a missing softmax shows as
what it is. Labels alone show less: a wrong mean may cost some accuracy only. What nobody gave cannot be checked, and is
said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cervix_engine.bundle.certificate import measure_parity
from cervix_engine.bundle.imported import ChannelOrder, ImportStatement
from cervix_engine.errors import ParityError
from cervix_engine.table.intervals import wilson
from cervix_engine.values import Probabilities
from cervix_export.imported.given_tiles import GivenTile

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# What the model would answer to the first few tiles, were this stated of it.
Restated = Callable[[ImportStatement], Probabilities]


@dataclass(frozen=True, slots=True)
class ExpectedCheck:
    """How far the answers are from those of another pipeline, on the tiles that have some."""

    tiles: int
    max_absdiff: float
    p99_absdiff: float
    top1_agreement: float
    atol: float


@dataclass(frozen=True, slots=True)
class LabelCheck:
    """How many labelled tiles are answered right; `largest_class` is the share of the class that most of them have."""

    tiles: int
    right: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    largest_class: float

    @property
    def better_than_chance(self) -> bool:
        return self.accuracy_interval[0] > self.largest_class


@dataclass(frozen=True, slots=True)
class Checks:
    """What was checked, and what could not be, a sentence each."""

    expected: ExpectedCheck | None
    labels: LabelCheck | None
    not_checked: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "not_checked": list(self.not_checked)}


def check_answers(
    tiles: Sequence[GivenTile],
    answers: Probabilities,
    *,
    statement: ImportStatement,
    atol: float,
    restated: Restated | None = None,
) -> Checks:
    """Compare answers with what is known of the tiles.

    Args:
        tiles: N of them.
        answers: `float32 (N, classes)`.
        statement: what was stated.
        atol: how far a probability may be from an expected one.
        restated: answers under other statements, to say which would have fitted; None where that takes too long.

    Raises:
        ParityError: they are not near enough to the expected ones.
    """
    missing = []
    expected = _expected(tiles, answers, statement, atol=atol)
    if expected is None:
        missing.append("no answers of the model's own pipeline were given: preprocessing is as stated, unchecked")
    elif not expected.max_absdiff <= atol:
        raise ParityError(_objection(expected, tiles, statement, restated), report=asdict(expected))
    labels = _labels(tiles, answers, statement)
    if labels is None:
        missing.append("no labels were given: accuracy is not known")
    return Checks(expected, labels, tuple(missing))


def _expected(
    tiles: Sequence[GivenTile], answers: Probabilities, statement: ImportStatement, *, atol: float
) -> ExpectedCheck | None:
    places = [place for place, tile in enumerate(tiles) if tile.expected is not None]
    if not places:
        return None
    wanted = np.array([tiles[place].expected for place in places], np.float32)
    names = statement.contract.class_names
    parity = measure_parity(wanted, answers[places], tiles=[tiles[place].path for place in places], class_names=names)
    return ExpectedCheck(len(places), parity.max_absdiff, parity.p99_absdiff, parity.top1_agreement, atol)


def _labels(tiles: Sequence[GivenTile], answers: Probabilities, statement: ImportStatement) -> LabelCheck | None:
    named = [(tile.label, int(answer.argmax())) for tile, answer in zip(tiles, answers, strict=True) if tile.label]
    if not named:
        return None
    names = statement.contract.class_names
    right = sum(names[answer] == label for label, answer in named)
    most = max(Counter(label for label, _ in named).values())
    total = len(named)
    return LabelCheck(total, right, right / total, wilson(right, total), most / total)


def _objection(
    found: ExpectedCheck, tiles: Sequence[GivenTile], statement: ImportStatement, restated: Restated | None
) -> str:
    words = (
        f"with what is stated, the model does not answer as expected: up to {found.max_absdiff:.3g} off on "
        f"{found.tiles} tiles (limit {found.atol:g}), {found.top1_agreement:.1%} of the classes equal"
    )
    if restated is None:
        return f"{words}; check mean, std, pixel_max, channel_order and output"
    for change, other in alternatives(statement):
        answers = restated(other)
        check = _expected(tiles[: len(answers)], answers, statement, atol=found.atol)
        if check is not None and check.max_absdiff <= found.atol:
            return f"{words}; with {change} it would (up to {check.max_absdiff:.2g} off)"
    return (
        f"{words}; neither another order of channels, scale, usual mean and deviation nor output would mend it. Where "
        "only tiles of another size than input_size differ, the other pipeline resizes them in another way: see --atol"
    )


def alternatives(statement: ImportStatement) -> Iterator[tuple[str, ImportStatement]]:
    """Statements that are often mistaken for one another, each with what it changes, in words."""
    stated = statement.input
    order: ChannelOrder = "BGR" if stated.channel_order == "RGB" else "RGB"
    inputs = {
        f'"channel_order": "{order}"': replace(stated, channel_order=order),
        '"pixel_max": 1': replace(stated, pixel_max=1.0),
        '"pixel_max": 255': replace(stated, pixel_max=255.0),
        '"pixel_max": 1 and no mean and std': replace(stated, pixel_max=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        "ImageNet's mean and std": replace(stated, pixel_max=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        "mean and std of 0.5": replace(stated, pixel_max=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    }
    for words, changed in inputs.items():
        if changed != stated:
            yield words, replace(statement, input=changed)
