"""What a row decides by an operating point, from the very digits that it shows.

    prob_<category>   the written probabilities of its classes, added up; never above 1
    category          the one with the largest sum; of equal ones the more serious
    abnormal          yes where prob_abnormal reaches `abnormal_at`
    review            yes where the confidence is below `review_below`, or prob_abnormal lies within `review_band`

Sums and comparisons are of whole millionths, which is what six decimal places are, so whoever does them again on the
table's text finds the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cervix_engine.contract import DECIMALS, Category, ModelContract, OperatingPoint

_ONE: int = 10**DECIMALS


class Decision(NamedTuple):
    """One tile's decisions.

    Attributes:
        confidence: the largest probability.
        probabilities: of each class.
        sums: of each category in use. All of these are in millionths.
        category: the most probable one.
        abnormal: whether the tile is called abnormal.
        review: whether a person must see it.
    """

    confidence: int
    probabilities: list[int]
    sums: list[int]
    category: Category
    abnormal: bool
    review: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """An operating point in millionths."""

    abnormal_at: int
    review_below: int
    review_low: int
    review_high: int

    @classmethod
    def of(cls, point: OperatingPoint) -> Rule:
        return cls(*map(in_millionths, (point.abnormal_at, point.review_below, *point.review_band)))

    def calls_abnormal(self, abnormal: int) -> bool:
        """Whether a tile whose prob_abnormal is this is called so."""
        return abnormal >= self.abnormal_at

    def asks_for_review(self, confidence: int, abnormal: int) -> bool:
        """Whether a person must see a tile of this confidence and prob_abnormal."""
        return confidence < self.review_below or self.review_low < abnormal < self.review_high


class Decisions:
    """Decides by the operating point of a contract, which must have one."""

    def __init__(self, contract: ModelContract) -> None:
        if contract.operating_point is None:
            raise ValueError("this contract has no operating point")
        self._rule = Rule.of(contract.operating_point)
        self._categories = contract.categories
        self._members = [
            [at for at, item in enumerate(contract.classes) if item.category == category]
            for category in self._categories
        ]
        self._abnormal = self._categories.index("abnormal")

    def __call__(self, probabilities: Sequence[float]) -> Decision:
        """Decide for one tile by the probabilities of its classes."""
        # As `in_millionths`, without a call for each: every row of a table comes by here.
        written = [round(value * _ONE) for value in probabilities]
        sums = [sum([written[at] for at in members]) for members in self._members]
        if max(sums) > _ONE:
            sums = [min(_ONE, value) for value in sums]
        confidence, abnormal = max(written), sums[self._abnormal]
        rule, category = self._rule, most_probable(self._categories, sums)
        called, review = rule.calls_abnormal(abnormal), rule.asks_for_review(confidence, abnormal)
        return Decision(confidence, written, sums, category, called, review)


def in_millionths(probability: float) -> int:
    """The digits that `%.6f` writes, as a whole number.

    A float32 times a million is exact in Python's floats, so that both round the same number.
    """
    return round(probability * _ONE)


def most_probable(categories: Sequence[Category], sums: Sequence[int]) -> Category:
    """The category with the largest sum; `categories` go from normal to abnormal, and of equal sums the last counts."""
    best = 0
    for at, value in enumerate(sums):
        if value >= sums[best]:
            best = at
    return categories[best]


def yes_or_no(answer: bool) -> str:
    """As a table says it."""
    return "yes" if answer else "no"
