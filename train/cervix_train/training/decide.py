"""Gives a trained model its operating point, from tiles that it did not learn from and that are no test tiles."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, UsageError
from cervix_engine.values import Probabilities
from cervix_train.data.dataset import Split
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.split_tiles import SplitTiles
from cervix_train.results.intervals import bootstrap_weights
from cervix_train.results.operating_point import DecisionReport, JudgedTiles, report_decisions

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Decided:
    """A contract with its operating point.

    Attributes:
        contract: without one where none could be chosen.
        report: what it is worth; None where there is none.
        judged: the tiles by split, as it sees them.
    """

    contract: ModelContract
    report: DecisionReport | None
    judged: Mapping[Split, JudgedTiles]


def check_request(config: TrainConfig) -> None:
    """Refuse, before anything is learnt, what no operating point can be chosen for.

    Raises:
        UsageError: it cannot.
    """
    # A NaN fails both comparisons.
    if not 0 < config.sensitivity <= 1:
        raise UsageError(f"--sensitivity {config.sensitivity}: expected a share above 0, at most 1")
    if not 0 <= config.review_share < 1:
        raise UsageError(f"--review-share {config.review_share}: expected a share below 1")


def decide(
    contract: ModelContract,
    answers: Mapping[Split, Probabilities],
    tiles: Mapping[Split, SplitTiles],
    *,
    config: TrainConfig,
) -> Decided:
    """Choose an operating point on the answers to `val`, and measure it there and on `test`, if that is there.

    Where there can be none, a warning says why.
    """
    judged = {
        split: JudgedTiles.of(
            probabilities,
            tiles[split].labelled.targets,
            bootstrap_weights(tiles[split].groups),
            classes=contract.classes,
        )
        for split, probabilities in answers.items()
    }
    report = report_decisions(
        judged["val"], judged.get("test"), sensitivity=config.sensitivity, review_share=config.review_share
    )
    if report is None:
        log.warning("no operating point: the tiles to choose it by are all abnormal, or none is")
        return Decided(contract, None, judged)
    try:
        decided = replace(contract, operating_point=report.point)
    except ContractError as error:
        log.warning("no %s", error)
        return Decided(contract, None, judged)
    for split, measured in (("val", report.val), ("test", report.test)):
        if measured:
            log.info("operating point, %s: %s", split, measured.chosen)
    return Decided(decided, report, judged)
