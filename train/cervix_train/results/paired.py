"""Two recipes on the same folds: how far apart they are, tile by tile, and how sure that is.

Both answered the same tiles, so the difference is known better than either figure: groups are resampled once, for both.
McNemar's exact test takes tiles as independent, which those of one group are not; where the two disagree, the interval
by groups is the one to believe.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cervix_engine.errors import UsageError
from cervix_engine.table.intervals import mcnemar_exact
from cervix_engine.table.scores import macro_f1
from cervix_train.learning.temperature import Targets
from cervix_train.results.fold_table import FoldTable
from cervix_train.results.intervals import Interval, Resamples, bootstrap_weights, percentile_interval


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both, and the first's less the second's, with its 95 % interval by groups."""

    first: float
    second: float
    difference: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class FoldPair:
    """The accuracies of both in one fold."""

    fold: int
    tiles: int
    first: float
    second: float


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two recipes on the same folds; of the schema `cervix/paired-folds/1`.

    Attributes:
        tiles, groups: that both answered.
        accuracy, macro_f1: pooled.
        only_first, only_second: tiles that only one of them has right.
        mcnemar_p: of the exact test of whether both are right equally often.
        folds: each fold's accuracies.
    """

    tiles: int
    groups: int
    accuracy: Difference
    macro_f1: Difference
    only_first: int
    only_second: int
    mcnemar_p: float
    folds: tuple[FoldPair, ...]

    schema: ClassVar[str] = "cervix/paired-folds/1"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}


def compare_folds(first: FoldTable, second: FoldTable) -> PairedComparison:
    """Compare the answers out of fold of two recipes.

    Raises:
        UsageError: they are not of the same tiles, labels, groups and folds.
    """
    _require_same(first, second)
    targets, weights = first.targets, bootstrap_weights(first.groups)
    predicted = [table.probabilities.argmax(axis=1) for table in (first, second)]
    right = [answer == targets for answer in predicted]
    only_first, only_second = (int((mine & ~other).sum()) for mine, other in (right, right[::-1]))
    numbers = np.array(first.folds)
    return PairedComparison(
        tiles=len(targets),
        groups=len(set(first.groups)),
        accuracy=_difference(*(_accuracies(hits, weights) for hits in right)),
        macro_f1=_difference(*(_macro_f1s(answer, targets, weights, first) for answer in predicted)),
        only_first=only_first,
        only_second=only_second,
        mcnemar_p=mcnemar_exact(only_first, only_second),
        folds=tuple(
            FoldPair(fold, int(inside.sum()), *(float(hits[inside].mean()) for hits in right))
            for fold in sorted(set(first.folds))
            if (inside := numbers == fold).any()
        ),
    )


def _require_same(first: FoldTable, second: FoldTable) -> None:
    if first.class_names != second.class_names:
        raise UsageError(f"the classes differ: {first.class_names} and {second.class_names}")
    if first.paths != second.paths:
        strangers = sorted(set(first.paths) ^ set(second.paths))
        raise UsageError(f"{len(strangers)} tiles were answered by one of them only, such as {strangers[0]}")
    for what in ("labels", "groups", "folds"):
        mine, other = getattr(first, what), getattr(second, what)
        if mine != other:
            index = next(number for number, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
            raise UsageError(
                f"the {what} differ, such as of {first.paths[index]}, {mine[index]} and {other[index]}: train both "
                "with the same --folds and --seed"
            )


# What a figure is of the tiles themselves, then of each resample.
_Resampled = tuple[float, npt.NDArray[np.float64]]


def _accuracies(right: npt.NDArray[np.bool_], weights: Resamples) -> _Resampled:
    return float(right.mean()), np.asarray((weights @ right) / weights.sum(axis=1))


def _macro_f1s(predicted: Targets, targets: Targets, weights: Resamples, table: FoldTable) -> _Resampled:
    classes = len(table.class_names)
    whole = macro_f1(predicted, targets, np.ones((1, len(targets))), classes=classes)
    return float(whole[0]), macro_f1(predicted, targets, weights, classes=classes)


def _difference(first: _Resampled, second: _Resampled) -> Difference:
    return Difference(first[0], second[0], first[0] - second[0], percentile_interval(first[1] - second[1]))
