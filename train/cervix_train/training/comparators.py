"""Several networks trained alike, and one table of what each is worth: the paper's comparison.

All read the same data and, by the same seed, the same split. Each bundle lies in a folder of its own. A network that
cannot be trained does not keep the others from it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from cervix_engine.errors import CervixError
from cervix_engine.files import write_json
from cervix_engine.outputs.places import json_start, require_own
from cervix_train.features.extractor import Backbone, Weights
from cervix_train.learning.config import TrainConfig
from cervix_train.training.train import TrainReport, train

log = logging.getLogger(__name__)


# A value and the ends of its 95 % interval.
Figure = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Comparator:
    """What one network reached.

    Attributes:
        backbone: which network.
        error: why it could not be trained, else None; nothing below is then known.
        seconds: of its whole training, features from the cache included.
        val_loss: the best, which chose the epoch.
        accuracy, macro_f1, sensitivity, specificity: of the test split; the last two of abnormal against the rest, None
            where the test split has only one of them.
    """

    backbone: Backbone
    error: str | None = None
    seconds: float = 0.0
    val_loss: float = 0.0
    accuracy: Figure | None = None
    macro_f1: Figure | None = None
    sensitivity: Figure | None = None
    specificity: Figure | None = None


@dataclass(frozen=True, slots=True)
class BackboneComparison:
    """What each network reached, in the order asked for."""

    comparators: tuple[Comparator, ...]

    schema: ClassVar[str] = "cervix/training-comparison/1"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, "comparators": [asdict(item) for item in self.comparators]}


def compare_backbones(
    config: TrainConfig,
    backbones: Sequence[Backbone],
    *,
    weights_of: Callable[[Backbone], Weights],
    train: Callable[[TrainConfig], TrainReport] = train,
) -> BackboneComparison:
    """Train each of `backbones` into `config.out/<backbone>`, and write `comparison.json` beside them.

    Args:
        config: what all have in common; its backbone and weights are not used.
        backbones: which networks.
        weights_of: where each network's weights come from.
        train: trains one of them.

    Raises:
        OSError: the folder cannot be written.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    require_own(comparison_file(config.out), json_start(BackboneComparison.schema))
    found = []
    for backbone in backbones:
        log.info("--- %s", backbone)
        events = config.tensorboard / backbone if config.tensorboard else None
        own = replace(
            config, backbone=backbone, weights=weights_of(backbone), out=config.out / backbone, tensorboard=events
        )
        found.append(_comparator(own, train))
    comparison = BackboneComparison(tuple(found))
    write_json(comparison_file(config.out), comparison.to_json())
    return comparison


def comparison_file(out: Path) -> Path:
    return out / "comparison.json"


def _comparator(config: TrainConfig, train: Callable[[TrainConfig], TrainReport]) -> Comparator:
    started = time.perf_counter()
    try:
        report = train(config)
    except CervixError as error:
        log.warning("%s: %s", config.backbone, error)
        return Comparator(config.backbone, error=str(error))
    return _measured(config.backbone, report, seconds=time.perf_counter() - started)


def _measured(backbone: Backbone, report: TrainReport, *, seconds: float) -> Comparator:
    metrics, abnormal = report.metrics, report.metrics.abnormal_vs_rest
    return Comparator(
        backbone,
        seconds=seconds,
        val_loss=report.val_loss,
        accuracy=(metrics.accuracy, *metrics.accuracy_interval),
        macro_f1=(metrics.macro.f1, *metrics.macro_f1_interval),
        sensitivity=(abnormal.sensitivity, *abnormal.sensitivity_interval) if abnormal else None,
        specificity=(abnormal.specificity, *abnormal.specificity_interval) if abnormal else None,
    )
