"""Reads a finished table back, row by row, in memory that does not grow with it, as long as it is in a run's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, get_args

from cervix_engine.contract import SIPAKMED_CLASSES, Category, ModelContract
from cervix_engine.errors import UsageError
from cervix_engine.table.columns import DECISIONS, REQUIRED, are_decided, class_names, probability, probability_column
from cervix_engine.table.formats import numbered_cells
from cervix_engine.table.names import unescape_name
from cervix_engine.tiles.csv_input import NumberedRows, check_header, repeated, whole_number

_YES_OR_NO = {"yes": True, "no": False}

# A class above this has more than half of all, however the digits were rounded: its row's category is its own.
_MAJORITY = 0.51

_CATEGORIES: dict[str, Category] = {name: name for name in get_args(Category)}


class Box(NamedTuple):
    """Where a tile lies on its slide, in pixels of the slide's full resolution."""

    minx: int
    miny: int
    width: int
    height: int


class Row(NamedTuple):
    """One row, typed. A named tuple and not a dataclass: a million are made, and this is three times as fast.

    Attributes:
        number: of the row in the table, from 0.
        path, slide_id: as they stand in the table, escaped.
        width, height: of the tile in pixels; None where it failed.
        corner: (minx, miny) where the table knows them.
        pred, category: None where the tile failed.
        probabilities: in the table's order of classes; empty where the tile failed.
        error: `kind: message` where the tile failed.
        quality: flags such as `blank`; empty where there are none or the run looked for none.
        prob_abnormal, abnormal, review: what the operating point decided; None where the tile failed, and in tables of
            models that have none.
    """

    number: int
    path: str
    slide_id: str
    width: int | None
    height: int | None
    corner: tuple[int, int] | None
    pred: str | None
    confidence: float
    probabilities: tuple[float, ...]
    category: Category | None
    error: str | None
    quality: tuple[str, ...]
    prob_abnormal: float | None = None
    abnormal: bool | None = None
    review: bool | None = None

    def abnormal_sum(self, abnormal: Sequence[int]) -> float:
        """The probability of being abnormal, as written, else of the classes at these indices; 0 for a failed tile."""
        if self.prob_abnormal is not None:
            return self.prob_abnormal
        return sum([self.probabilities[at] for at in abnormal]) if self.probabilities else 0.0

    @property
    def box(self) -> Box | None:
        if self.corner is None or self.width is None or self.height is None:
            return None
        return Box(*self.corner, self.width, self.height)


@dataclass(frozen=True, slots=True)
class Table:
    """A finished table of `cervix-batch`, in any of the formats it writes.

    Attributes:
        path: the file.
        columns: all of them, in order.
        class_names: in the model's order.
    """

    path: Path
    columns: tuple[str, ...]
    class_names: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> Table:
        """Read the header.

        Raises:
            UsageError: there is no table, or not one of `cervix-batch`.
        """
        with closing(_cells(path)) as cells:
            _, columns = next(cells, (1, []))
        names = class_names(columns)
        needed = [*REQUIRED, *([] if len(names) > 1 else [probability_column("<class>")])]
        if are_decided(columns):
            needed.append(probability_column("abnormal"))
        check_header(path, columns, needed, expected="a table of cervix-batch")
        return cls(path, tuple(columns), names)

    @property
    def is_decided(self) -> bool:
        """Whether its rows hold the decisions of an operating point."""
        return are_decided(self.columns)

    def rows(self) -> Iterator[Row]:
        """Every row, in order.

        Raises:
            UsageError: a row is not what `cervix-batch` writes, or has the path of another; the message names its line.
        """
        parse, paths = _RowParser(self.columns), _Paths(self.path)
        with closing(_cells(self.path)) as cells:
            next(cells)
            for number, (line, values) in enumerate(cells):
                try:
                    row = parse(number, values)
                except ValueError as error:
                    raise UsageError(f"{self.path}, line {line}: {error}") from error
                paths.add(row.path, line)
                yield row

    def paths(self) -> Iterator[str]:
        """The path of each row's tile, not escaped.

        Raises:
            UsageError: as `rows`.
        """
        return (unescape_name(row.path) for row in self.rows())

    def categories(self, contract: ModelContract | None = None) -> tuple[Category, ...]:
        """The clinical category of each class: the contract's, else what the table's own rows say.

        Raises:
            UsageError: a class is never predicted in this table, and is none of SIPaKMeD's.
        """
        if contract is not None:
            return _contract_categories(contract, self)
        known = {item.name: item.category for item in SIPAKMED_CLASSES}
        found: dict[str, Category] = {}
        for row in self.rows():
            # Where there is an operating point, a category may be that of other classes together.
            sure = not self.is_decided or row.confidence > _MAJORITY
            if row.pred is not None and row.category is not None and sure:
                found[row.pred] = row.category
                if len(found) == len(self.class_names):
                    break
        known |= found
        if lost := [name for name in self.class_names if name not in known]:
            raise UsageError(f"{self.path} never predicts {', '.join(lost)}: name its bundle with --model")
        return tuple(known[name] for name in self.class_names)


def _contract_categories(contract: ModelContract, table: Table) -> tuple[Category, ...]:
    if contract.class_names != table.class_names:
        raise UsageError(f"the bundle's classes {contract.class_names} are not the table's {table.class_names}")
    return tuple(item.category for item in contract.classes)


def _cells(path: Path) -> NumberedRows:
    try:
        yield from numbered_cells(path)
    except OSError as error:
        # Of a folder, the file in it that is not there.
        raise UsageError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


class _Paths:
    """Refuses a path that a table has twice.

    A run writes paths in ascending order, in which equal ones would be neighbours, so only the last is held. Where a
    table was sorted anew, the first that does not ascend makes it read all paths before, and hold every one.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        self._last = ""
        self._lines: dict[str, int] | None = None

    def add(self, path: str, line: int) -> None:
        if self._lines is None:
            name = unescape_name(path) if "%" in path else path
            if name > self._last:
                self._last = name
                return
            self._lines = self._before(line)
        if (first := self._lines.setdefault(path, line)) != line:
            raise repeated(self._table, line, path, first)

    def _before(self, line: int) -> dict[str, int]:
        with closing(_cells(self._table)) as cells:
            _, header = next(cells)
            at = header.index("path")
            return {values[at]: earlier for earlier, values in takewhile(lambda item: item[0] < line, cells)}


class _RowParser:
    """Cells to a `Row`, with the columns' indices looked up once."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        at = {name: index for index, name in enumerate(columns)}
        self._path, self._slide = at["path"], at["slide_id"]
        self._minx, self._miny, self._width, self._height = at["minx"], at["miny"], at["width"], at["height"]
        self._pred, self._confidence, self._category = at["pred"], at["confidence"], at["category"]
        self._status, self._error, self._quality = at["status"], at["error"], at.get("quality")
        self._probabilities = [at[probability_column(name)] for name in class_names(columns)]
        self._classes = frozenset(class_names(columns))
        names = (probability_column("abnormal"), *DECISIONS)
        self._decided = [at[name] for name in names] if are_decided(columns) else None

    def __call__(self, number: int, cells: list[str]) -> Row:
        flags = cells[self._quality] if self._quality is not None else ""
        quality = tuple(flags.split(";")) if flags else ()
        minx, width = cells[self._minx], cells[self._width]
        # A cell empty in a failed row alone makes pandas write floats into the others.
        corner = (whole_number(minx), whole_number(cells[self._miny])) if minx else None
        tile = (
            number,
            cells[self._path],
            cells[self._slide],
            whole_number(width) if width else None,
            whole_number(cells[self._height]) if width else None,
            corner,
        )
        if not tile[1]:
            raise ValueError("no path")
        status = cells[self._status]
        if status == "failed":
            return Row(*tile, None, 0.0, (), None, cells[self._error], quality)
        category = _CATEGORIES.get(cells[self._category])
        pred = cells[self._pred]
        if status != "ok" or category is None or pred not in self._classes:
            raise ValueError(f"status {status!r}, class {pred!r} and category {cells[self._category]!r} are no row's")
        if cells[self._error]:
            raise ValueError(f"status 'ok' with the error {cells[self._error]!r}")
        probabilities = tuple([probability(cells[at]) for at in self._probabilities])
        confidence = probability(cells[self._confidence])
        return Row(*tile, pred, confidence, probabilities, category, None, quality, *self._decisions(cells))

    def _decisions(self, cells: list[str]) -> tuple[float, bool, bool] | tuple[()]:
        if self._decided is None:
            return ()
        summed, abnormal, review = (cells[at] for at in self._decided)
        if abnormal not in _YES_OR_NO or review not in _YES_OR_NO:
            raise ValueError(f"abnormal {abnormal!r} and review {review!r}: expected yes or no")
        return probability(summed), _YES_OR_NO[abnormal], _YES_OR_NO[review]
