"""What a model says of tiles: a typed row for each, and all of them as a table of arrow or pandas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from cervix_engine.contract import Category
from cervix_engine.errors import BackendUnavailableError
from cervix_engine.values import Probabilities

if TYPE_CHECKING:
    import pandas
    import pyarrow

# What only the answers of a model with an operating point have.
_DECISIONS = ("prob_abnormal", "abnormal", "review")

# What each column holds, but for the probabilities of classes; as arrow and as pandas call it. The same whether or not
# tiles failed, so that tables of several calls can be joined.
_TEXT, _COUNT, _NUMBER, _FLAG = ("string", "string"), ("int64", "Int64"), ("float64", "float64"), ("bool", "boolean")
_TYPES = {
    "path": _TEXT,
    "height": _COUNT,
    "width": _COUNT,
    "pred": _TEXT,
    "confidence": _NUMBER,
    "category": _TEXT,
    "error": _TEXT,
    "prob_abnormal": _NUMBER,
    "abnormal": _FLAG,
    "review": _FLAG,
}


@dataclass(frozen=True, slots=True)
class TileAnswer:
    """What the model says of one tile, or why it says nothing.

    Attributes:
        path: as it was given; None for an array.
        height, width: of the tile in pixels, before the resize; None where it could not be decoded.
        pred: the most probable class; None where the tile failed, as are `confidence` and `category`.
        confidence: its probability.
        category: its clinical category; with an operating point, the most probable one.
        probabilities: in the order of `Answers.class_names`; empty where the tile failed.
        error: `kind: message` where the tile failed, else None.
        prob_abnormal, abnormal, review: what the operating point decides, as in a table; None where there is none, and
            where the tile failed.
    """

    path: str | None
    height: int | None
    width: int | None
    pred: str | None
    confidence: float | None
    category: Category | None
    probabilities: tuple[float, ...]
    error: str | None
    prob_abnormal: float | None = None
    abnormal: bool | None = None
    review: bool | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class Answers(Sequence[TileAnswer]):
    """One answer for each tile that was asked, in the same order; `is_decided` where there is an operating point."""

    class_names: tuple[str, ...]
    rows: tuple[TileAnswer, ...]
    is_decided: bool = False

    @overload
    def __getitem__(self, index: int) -> TileAnswer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TileAnswer]: ...
    def __getitem__(self, index: int | slice) -> TileAnswer | Sequence[TileAnswer]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def probabilities(self) -> Probabilities:
        """`float32 (N, classes)`; a failed tile's row is NaN."""
        nothing = (float("nan"),) * len(self.class_names)
        return np.array([row.probabilities or nothing for row in self.rows], np.float32)

    def columns(self) -> dict[str, list[Any]]:
        """By column, a value for each tile: those of `TileAnswer`, with `prob_<class>` for the probabilities."""
        table: dict[str, list[Any]] = {}
        for field in fields(TileAnswer):
            if field.name in _DECISIONS and not self.is_decided:
                continue
            if field.name != "probabilities":
                table[field.name] = [getattr(row, field.name) for row in self.rows]
                continue
            for number, name in enumerate(self.class_names):
                table[f"prob_{name}"] = [row.probabilities[number] if row.ok else None for row in self.rows]
        return table

    def to_pandas(self) -> pandas.DataFrame:
        """A table whose types are the same for all answers: what a failed tile lacks is NA.

        Raises:
            BackendUnavailableError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise BackendUnavailableError("this needs pandas: pip install pandas") from error
        columns = self.columns().items()
        return pandas.DataFrame({name: pandas.Series(values, dtype=_types(name)[1]) for name, values in columns})

    def to_arrow(self) -> pyarrow.Table:
        """A table whose schema is the same for all answers: what a failed tile lacks is null.

        Raises:
            BackendUnavailableError: pyarrow is not installed.
        """
        try:
            import pyarrow
        except ImportError as error:
            raise BackendUnavailableError("this needs pyarrow: pip install pyarrow") from error
        columns = self.columns()
        schema = pyarrow.schema([(name, pyarrow.type_for_alias(_types(name)[0])) for name in columns])
        return pyarrow.table(columns, schema=schema)


def _types(column: str) -> tuple[str, Any]:
    return _TYPES.get(column, _NUMBER)
