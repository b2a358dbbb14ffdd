"""The columns of a table, spelled here alone: their order, their types, and which are empty where a tile failed.

    path slide_id | minx miny width height pred confidence prob_<class>… category | status error | quality sha256

The second group is empty in the row of a failed tile. The last are optional. Names and geometry are WSInfer's where it
has them, so that its QuPath tools read the table.

Where the model has an operating point, the second group ends in its decisions:

    … category prob_<category>… abnormal review

A class that is called like a category is the whole of it, and its column serves for both. So a `prob_` column that is
called like a category is a category's alone where it stands behind `category`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, get_args

from cervix_engine.contract import Category

IDENTITY = ("path", "slide_id")
GEOMETRY = ("minx", "miny", "width", "height")
OUTCOME = ("status", "error")
OPTIONAL = ("quality", "sha256")
DECISIONS = ("abnormal", "review")

# What every table has beside the probabilities.
REQUIRED = (*IDENTITY, *GEOMETRY, "pred", "confidence", "category", *OUTCOME)

_PROBABILITY = "prob_"


def predicted_columns(class_names: Collection[str], categories: Collection[Category] = ()) -> tuple[str, ...]:
    """The columns that a failed tile leaves empty; `categories` are those in use, where there is an operating point."""
    columns = (*GEOMETRY, "pred", "confidence", *map(probability_column, class_names), "category")
    if not categories:
        return columns
    sums = (probability_column(name) for name in categories if name not in class_names)
    return (*columns, *sums, *DECISIONS)


def table_columns(
    class_names: Collection[str], optional: Collection[str] = (), *, categories: Collection[Category] = ()
) -> tuple[str, ...]:
    """All columns of a table, in order; `optional` names those of `OPTIONAL` that it has."""
    chosen = (name for name in OPTIONAL if name in optional)
    return (*IDENTITY, *predicted_columns(class_names, categories), *OUTCOME, *chosen)


def are_decided(columns: Collection[str]) -> bool:
    """Whether rows hold the decisions of an operating point."""
    return set(DECISIONS) <= set(columns)


def probability_column(class_name: str) -> str:
    return f"{_PROBABILITY}{class_name}"


def class_names(columns: Iterable[str]) -> tuple[str, ...]:
    """The classes whose probabilities a table has, in its order."""
    columns = tuple(columns)
    behind = columns[columns.index("category") :] if are_decided(columns) and "category" in columns else ()
    sums = {probability_column(name) for name in get_args(Category)}.intersection(behind)
    found = (name for name in columns if name.startswith(_PROBABILITY) and name not in sums)
    return tuple(name.removeprefix(_PROBABILITY) for name in found)


def column_type(name: str) -> type[int] | type[float] | type[str]:
    """What a column's cells hold; a cell may be empty in any column."""
    if name in GEOMETRY:
        return int
    return float if name == "confidence" or name.startswith(_PROBABILITY) else str


def probability(cell: str) -> float:
    """A cell of a `prob_` column or of `confidence`, of which a person's program may have made anything.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if 0.0 <= value <= 1.0:  # never true of NaN
        return value
    raise ValueError(f"{cell!r} is no probability, a number from 0 to 1")


def cell_value(name: str, cell: str) -> int | float | str | None:
    """A cell of a column's text as what the column holds; None where it is empty."""
    return None if cell == "" else column_type(name)(cell)


def cell_text(name: str, value: Any) -> str:
    """The text that `cell_value` was made of."""
    if value is None:
        return ""
    return f"{value:.6f}" if column_type(name) is float else str(value)
