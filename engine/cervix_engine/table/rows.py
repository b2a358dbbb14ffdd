"""One tile's outcome as one row; the columns are WSInfer's where it has them, so that its QuPath tools read them."""

from __future__ import annotations

from collections.abc import Callable, Collection

from cervix_engine.contract import ModelContract
from cervix_engine.table.coordinates import BY_NAMES, Locating
from cervix_engine.table.names import escape_name
from cervix_engine.tiles.tile import NO_NOTES, Outcome, TileFailure, TileNotes, TileRef, TileSize

# What a run can be asked for besides, each behind the standard columns.
OPTIONAL: dict[str, Callable[[TileNotes], str]] = {
    "quality": lambda notes: ";".join(notes.quality),
    "sha256": lambda notes: notes.sha256,
}


class RowFormat:
    """Turns outcomes into cells.

    `pred` is the argmax of the unrounded probabilities, `%.6f` is for the reader. A failed tile's prediction
    columns are empty, never zero. `locator` finds a tile's slide and place in its name. `optional` names columns of
    `OPTIONAL`; they stand last, in its order.
    """

    def __init__(
        self, contract: ModelContract, *, optional: Collection[str] = (), locator: Locating = BY_NAMES
    ) -> None:
        self._locator = locator
        self._classes = contract.classes
        self._optional = {name: cell for name, cell in OPTIONAL.items() if name in optional}
        self.columns: tuple[str, ...] = (
            *("path", "slide_id", "minx", "miny", "width", "height", "pred", "confidence"),
            *(f"prob_{name}" for name in contract.class_names),
            *("category", "status", "error"),
            *self._optional,
        )

    def row(self, tile: TileRef, outcome: Outcome, notes: TileNotes = NO_NOTES) -> list[str]:
        """The cells of one row, in the order of `columns`."""
        size = TileSize(0, 0) if isinstance(outcome, TileFailure) else outcome.size
        place = self._locator.place(tile.path, tile.slide_id, size.width, size.height)
        name, slide = escape_name(tile.path), escape_name(place.slide_id if place else tile.slide_id)
        optional = [cell(notes) for cell in self._optional.values()]
        if isinstance(outcome, TileFailure):
            empty = [""] * (len(self.columns) - 4 - len(optional))
            return [name, slide, *empty, "failed", outcome.reason, *optional]
        probabilities = outcome.probabilities
        confidence = max(probabilities)
        best = self._classes[probabilities.index(confidence)]
        return [
            name,
            slide,
            *(map(str, place.box) if place else ("", "", str(size.width), str(size.height))),
            best.name,
            f"{confidence:.6f}",
            *[f"{value:.6f}" for value in probabilities],
            best.category,
            "ok",
            "",
            *optional,
        ]
