"""Outcomes as rows of a table: the cells of one row, or the CSV lines of a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from cervix_engine.contract import ModelContract, TileClass
from cervix_engine.table.columns import DECISIONS, OPTIONAL, are_decided, predicted_columns, table_columns
from cervix_engine.table.coordinates import BY_NAMES, NAMES, FolderSlides, Locating, Slides
from cervix_engine.table.decisions import Decisions, yes_or_no
from cervix_engine.table.formats import csv_cell, csv_text
from cervix_engine.table.locations import locating_for_run, slides_for_run
from cervix_engine.table.names import escape_name
from cervix_engine.tiles.tile import NO_NOTES, Outcome, Prediction, TileFailure, TileNotes, TileRef, TileSize

_NOTE_CELLS: dict[str, Callable[[TileNotes], str]] = {
    "quality": lambda notes: ";".join(notes.quality),
    "sha256": lambda notes: notes.sha256,
}


_BY_FOLDER = FolderSlides("root")


class RowFormat:
    """Turns outcomes into rows.

    `pred` is the argmax of the unrounded probabilities, `%.6f` is for the reader; what follows from an operating point
    is decided by what is written. A failed tile's prediction columns are empty, never zero. `slides` names a tile's
    slide, and `locator` finds its location, which may name the slide too. `optional` names columns of
    `columns.OPTIONAL`.
    """

    def __init__(
        self,
        contract: ModelContract,
        *,
        optional: Collection[str] = (),
        slides: Slides = _BY_FOLDER,
        locator: Locating = BY_NAMES,
    ) -> None:
        self._slides = slides
        self._locator = locator
        self._classes = contract.classes
        self._notes = [_NOTE_CELLS[name] for name in OPTIONAL if name in optional]
        categories = contract.categories if contract.operating_point else ()
        self._decisions = Decisions(contract) if categories else None
        # A class that is called like a category is the whole of it: one column serves for both.
        self._sums = [at for at, name in enumerate(categories) if name not in contract.class_names]
        self._failed_cells = [""] * len(predicted_columns(contract.class_names, categories))
        self._predictions = [_prediction_format(item, len(self._classes)) for item in self._classes]
        self._decided = f"%s{',%.6f' * (1 + len(self._classes))},%s{',%.6f' * len(self._sums)},%s,%s,ok,"
        self.columns = table_columns(contract.class_names, optional, categories=categories)

    @classmethod
    def for_run(
        cls,
        contract: ModelContract,
        *,
        optional: Collection[str],
        slide: str | None,
        coords: str | None,
        root_name: str,
        paths: Iterable[str],
    ) -> RowFormat:
        """How a run writes its rows.

        Args:
            contract: of its model.
            optional: names of further columns.
            slide, coords: how names are read, as in `locations.slides_for_run` and `locating_for_run`.
            root_name: the slide of tiles that lie in no folder.
            paths: of all tiles.

        Raises:
            UsageError: a file that is named there cannot be used.
        """
        locator = locating_for_run(coords or NAMES, slide=slide, paths=paths)
        return cls(contract, optional=optional, slides=slides_for_run(slide, root_name), locator=locator)

    def row(self, tile: TileRef, outcome: Outcome, notes: TileNotes = NO_NOTES) -> list[str]:
        """The cells of one row, in the order of `columns`."""
        size = TileSize(0, 0) if isinstance(outcome, TileFailure) else outcome.size
        slide = self._slides(tile.path)
        location = self._locator.locate(tile.path, slide, size.width, size.height)
        name, slide = escape_name(tile.path), escape_name(location.slide_id if location else slide)
        optional = [cell(notes) for cell in self._notes]
        if isinstance(outcome, TileFailure):
            return [name, slide, *self._failed_cells, "failed", outcome.reason, *optional]
        geometry = map(str, location.box) if location else ("", "", str(size.width), str(size.height))
        return [name, slide, *geometry, *self._predicted(outcome.probabilities), "ok", "", *optional]

    def slide(self, tile: TileRef, outcome: Prediction) -> str:
        """The slide of a predicted tile, as its row names it."""
        slide, size = self._slides(tile.path), outcome.size
        location = self._locator.locate(tile.path, slide, size.width, size.height)
        return escape_name(location.slide_id if location else slide)

    def places_alike(self, path: str, cells: Sequence[str]) -> bool:
        """Whether a row with these cells would have the same slide and place if it were written now.

        A tile whose place says no width or height is taken to be as large as the row says.
        """
        row = dict(zip(self.columns, cells, strict=True))
        slide, error = self._slides(path), row["error"]
        location = self._locator.locate(path, slide, int(row["width"] or 0), int(row["height"] or 0))
        if escape_name(location.slide_id if location else slide) != row["slide_id"]:
            return False
        box = tuple(map(str, location.box)) if location else ("", "", row["width"], row["height"])
        return bool(error) or box == tuple(row[name] for name in ("minx", "miny", "width", "height"))

    def _predicted(self, probabilities: tuple[float, ...]) -> list[str]:
        """The cells from `pred` on."""
        confidence = max(probabilities)
        best = self._classes[probabilities.index(confidence)]
        cells = [best.name, *[f"{value:.6f}" for value in (confidence, *probabilities)]]
        if self._decisions is None:
            return [*cells, best.category]
        decided = self._decisions(probabilities)
        sums = [f"{decided.sums[at] / 1e6:.6f}" for at in self._sums]
        return [*cells, decided.category, *sums, yes_or_no(decided.abnormal), yes_or_no(decided.review)]

    def lines(self, tiles: Iterable[TileRef], outcomes: Iterable[Outcome], notes: Iterable[TileNotes]) -> bytes:
        """The rows of a batch as CSV: what `csv_line` makes of each `row`, in a third of the time."""
        return "".join(map(self._line, tiles, outcomes, notes)).encode("utf-8")

    def _line(self, tile: TileRef, outcome: Outcome, notes: TileNotes) -> str:
        if isinstance(outcome, TileFailure):
            return csv_text(self.row(tile, outcome, notes))
        size, probabilities = outcome.size, outcome.probabilities
        slide = self._slides(tile.path)
        location = self._locator.locate(tile.path, slide, size.width, size.height)
        if location is None:
            geometry = f",,{size.width},{size.height}"
        else:
            slide, geometry = location.slide_id, ",".join(map(str, location.box))
        confidence = max(probabilities)
        best = probabilities.index(confidence)
        if self._decisions is None:
            prediction = self._predictions[best] % (confidence, *probabilities)
        else:
            prediction = self._decided_cells(self._classes[best].name, confidence, probabilities)
        optional = "".join([f",{csv_cell(cell(notes))}" for cell in self._notes])
        names = f"{csv_cell(escape_name(tile.path))},{csv_cell(escape_name(slide))}"
        return f"{names},{geometry},{prediction}{optional}\n"

    def _decided_cells(self, best: str, confidence: float, probabilities: tuple[float, ...]) -> str:
        assert self._decisions is not None
        decided = self._decisions(probabilities)
        return self._decided % (
            best,
            confidence,
            *probabilities,
            decided.category,
            *[decided.sums[at] / 1e6 for at in self._sums],
            yes_or_no(decided.abnormal),
            yes_or_no(decided.review),
        )


def _prediction_format(best: TileClass, classes: int) -> str:
    """A `%` format for confidence and probabilities: the cells from `pred` to `error` of a tile of class `best`."""
    return f"{best.name},%.6f{',%.6f' * classes},{best.category},ok,"


class DecidedRows:
    """Counts, among the rows of a table as CSV, those that its operating point decides about.

    Attributes:
        abnormal, review: rows that say `yes` in that column.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.abnormal = self.review = 0
        # Both stand before status, error and the optional columns, none of which holds a comma in a predicted row.
        self._behind = len(columns) - columns.index(DECISIONS[0]) if are_decided(columns) else 0

    def counted(self, rows: Iterable[bytes]) -> Iterator[bytes]:
        """The same rows, each counted as it passes."""
        if not self._behind:
            yield from rows
            return
        for row in rows:
            abnormal, review, status, error, *_ = row.rstrip(b"\r\n").rsplit(b",", self._behind)[1:]
            if status == b"ok" and not error:
                self.abnormal += abnormal == b"yes"
                self.review += review == b"yes"
            yield row
