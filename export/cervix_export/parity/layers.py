"""What each layer is, what it measures, and what it objects to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cervix_engine.bundle.certificate import Parity, measure_parity
from cervix_engine.files import sha256_bytes
from cervix_engine.table.intervals import wilson
from cervix_engine.values import Precision, Probabilities
from cervix_engine.words import counted
from cervix_export.parity.accuracy import AccuracyChange, accuracy_change
from cervix_export.parity.tiles import Labels, ParityTiles, Received

Layer = Literal["pixels", "graph", "artefact"]

# Half a point of macro-F1, or less than what the tiles can tell.
MOST_F1_DROP = 0.005


@dataclass(frozen=True, slots=True)
class Limits:
    """What to hold answers to, beside each precision's own gate.

    Attributes:
        atol: bound on every absolute probability difference; None leaves it to the gate.
        min_agreement: least share of tiles with the same class.
    """

    atol: float | None = None
    min_agreement: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One comparison.

    Attributes:
        layer: where it sits.
        subject: what was compared with what, for people.
        tiles: how many were compared.
        parity: distances and changed classes; None for pixels, which are equal or not.
        agreement_interval: 95 % interval of the share of tiles with the same class.
        accuracy: what the difference does to accuracy, where classes are known.
        objections: why it falls short; empty when it does not.
        binding: whether falling short is a fault. It is none of a mode that nobody asked for and that holds no
            certificate, so that nothing takes it.
    """

    layer: Layer
    subject: str
    tiles: int
    parity: Parity | None
    agreement_interval: tuple[float, float] | None
    accuracy: AccuracyChange | None
    objections: tuple[str, ...]
    binding: bool = True

    @property
    def passed(self) -> bool:
        return not (self.objections and self.binding)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def compare_pixels(tiles: ParityTiles, seen: Received, *, digests: Sequence[str]) -> LayerResult:
    """Compare what the engine's inference stage received with what training saw, by digest.

    Args:
        digests: hex SHA-256 of each tile's pixels in training.
    """
    objections = [
        f"{path}: {seen.failures[place].reason}" if place in seen.failures else f"{path}: other pixels than in training"
        for place, (path, digest) in enumerate(zip(tiles.paths, digests, strict=True))
        if place in seen.failures or sha256_bytes(seen.pixels[place].data) != digest
    ]
    if len(objections) > _SHOWN:
        objections = [
            *objections[:_SHOWN],
            f"and {len(objections) - _SHOWN} more of {counted(len(tiles.paths), 'tile')}",
        ]
    subject = "the engine's batches and training's"
    return LayerResult("pixels", subject, len(tiles.paths), None, None, None, tuple(objections))


_SHOWN = 5


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """What stays the same while answers are compared.

    Attributes:
        names: of the tiles.
        labels: true classes, -1 where unknown.
        class_names: in output order.
    """

    names: list[str]
    labels: Labels
    class_names: tuple[str, ...]
    limits: Limits

    def measure(
        self, layer: Layer, subject: str, *, precision: Precision, reference: Probabilities, candidate: Probabilities
    ) -> LayerResult:
        """Hold a candidate's answers, `float32 (N, classes)`, to the reference's."""
        parity = measure_parity(reference, candidate, tiles=self.names, class_names=self.class_names)
        same = parity.tiles - len(parity.flips)
        accuracy = accuracy_change(reference, candidate, self.labels)
        objections = [*parity.failures(precision), *self._further(parity, accuracy)]
        interval = wilson(same, parity.tiles)
        return LayerResult(layer, subject, parity.tiles, parity, interval, accuracy, tuple(objections))

    def _further(self, parity: Parity, accuracy: AccuracyChange | None) -> list[str]:
        objections = []
        limits = self.limits
        if limits.atol is not None and not parity.max_absdiff <= limits.atol:
            objections.append(f"max absolute difference {parity.max_absdiff:.3g}, --atol {limits.atol:g}")
        if parity.top1_agreement < limits.min_agreement:
            agreement = f"{parity.top1_agreement:.2%} of the classes agree"
            objections.append(f"{agreement}, --min-agreement {limits.min_agreement:.2%}")
        if accuracy and accuracy.macro_f1_drop > MOST_F1_DROP and accuracy.interval[0] > 0:
            drop = f"macro-F1 falls by {100 * accuracy.macro_f1_drop:.2f} points"
            objections.append(f"{drop}, limit {100 * MOST_F1_DROP:g} or what the tiles cannot tell from none")
        return objections
