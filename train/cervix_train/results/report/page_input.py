"""What the training report's page tells, and what all of its sections do alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cervix_engine.contract import TileClass
from cervix_train.results.calibration import Calibration
from cervix_train.results.copy_cost import CopyReport
from cervix_train.results.fold_table import CrossValidation
from cervix_train.results.metrics import Metrics
from cervix_train.results.operating_point import DecisionReport
from cervix_train.results.record import TrainingRecord
from cervix_train.results.report.markup import text
from cervix_train.results.report.plots import Example


@dataclass(frozen=True, slots=True)
class PageInput:
    """What the page tells.

    Attributes:
        metrics: of the test split.
        decisions: the operating point; None where none could be chosen.
        classes: with their display names.
        pictures: an `<svg>` element by its name.
        examples: some test tiles.
        copies: None where nobody looked for them.
        folds: of a cross-validation, whose answers out of fold the metrics are of; None where a split was tested.
    """

    metrics: Metrics
    calibration: Calibration
    decisions: DecisionReport | None
    record: TrainingRecord
    classes: Sequence[TileClass]
    pictures: Mapping[str, str]
    examples: Sequence[Example] = ()
    copies: CopyReport | None = None
    folds: CrossValidation | None = None

    @property
    def tested(self) -> str:
        """What the metrics are of, in words."""
        return "tiles, answered out of fold," if self.folds else "test tiles"

    @property
    def names(self) -> dict[str, str]:
        """Display names, by name."""
        return {item.name: item.display_name for item in self.classes}

    def figures(self, *pictures: tuple[str, str]) -> str:
        """The (name, caption) of those that there are, side by side where there is room."""
        figures = "".join(
            f'<figure role="img" aria-label="{text(caption)}">{self.pictures[name]}'
            f"<figcaption>{text(caption)}</figcaption></figure>"
            for name, caption in pictures
            if name in self.pictures
        )
        return f'<div class="plots">{figures}</div>'

    @property
    def precision(self) -> str:
        """What was computed in, in words."""
        parts = {"mixed_precision": "stages on pixels", "bf16_features": "training tiles’ features"}
        in_bf16 = [words for name, words in parts.items() if self.record.recipe.get(name)]
        return f"FP32, {' and '.join(in_bf16)} in BF16" if in_bf16 else "FP32"
