"""Reads a finished table back, row by row, in memory that does not grow with it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

from cervix_engine.contract import SIPAKMED_CLASSES, Category, ModelContract
from cervix_engine.errors import UsageError
from cervix_engine.table.formats import open_cells

FIXED = ("path", "slide_id", "minx", "miny", "width", "height", "pred", "confidence", "category", "status", "error")
_PROBABILITY = "prob_"
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
        number: its place in the table, from 0.
        path, slide_id: as they stand in the table, escaped.
        width, height: of the tile in pixels; None where it failed.
        corner: (minx, miny) where the table knows them.
        pred, category: None where the tile failed.
        probabilities: in the table's order of classes; empty where the tile failed.
        error: `kind: message` where the tile failed.
        quality: flags such as `blank`; empty where there are none or the run looked for none.
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
        columns = tuple(next(_cells(path), ()))
        missing = [name for name in FIXED if name not in columns]
        names = tuple(name.removeprefix(_PROBABILITY) for name in columns if name.startswith(_PROBABILITY))
        if missing or len(names) < 2:
            lacks = ", ".join(missing or ["prob_<class>"])
            raise UsageError(f"{path} is no table of cervix-batch: it lacks the columns {lacks}")
        return cls(path, columns, names)

    def rows(self) -> Iterator[Row]:
        """Every row, in order.

        Raises:
            UsageError: a row is not what `cervix-batch` writes; the message names its line.
        """
        parse = _RowParser(self.columns)
        cells = _cells(self.path)
        next(cells)
        number = 0
        try:
            for number, values in enumerate(cells, start=1):
                yield parse(number - 1, values)
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{self.path}, row {number}: {error}") from error

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
            if row.pred is not None and row.category is not None:
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


def _cells(path: Path) -> Iterator[list[str]]:
    try:
        yield from open_cells(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no table of cervix-batch: {error}") from error


class _RowParser:
    """Cells to a `Row`, with the columns' places looked up once."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        places = [columns.index(name) for name in FIXED]
        self._path, self._slide, self._minx, self._miny, self._width, self._height = places[:6]
        self._pred, self._confidence, self._category, self._status, self._error = places[6:]
        self._probabilities = [at for at, name in enumerate(columns) if name.startswith(_PROBABILITY)]
        self._quality = columns.index("quality") if "quality" in columns else None
        self._count = len(columns)

    def __call__(self, number: int, cells: list[str]) -> Row:
        if len(cells) != self._count:
            raise ValueError(f"{len(cells)} cells, expected {self._count}")
        flags = cells[self._quality] if self._quality is not None else ""
        quality = tuple(flags.split(";")) if flags else ()
        minx, width = cells[self._minx], cells[self._width]
        corner = (int(minx), int(cells[self._miny])) if minx else None
        place = (
            number,
            cells[self._path],
            cells[self._slide],
            int(width) if width else None,
            int(cells[self._height]) if width else None,
            corner,
        )
        status = cells[self._status]
        if status == "failed":
            return Row(*place, None, 0.0, (), None, cells[self._error], quality)
        category = _CATEGORIES.get(cells[self._category])
        if status != "ok" or category is None:
            raise ValueError(f"status {status!r} with category {cells[self._category]!r}")
        probabilities = tuple([float(cells[at]) for at in self._probabilities])
        confidence = float(cells[self._confidence])
        return Row(*place, cells[self._pred], confidence, probabilities, category, None, quality)
