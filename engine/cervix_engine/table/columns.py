"""The columns of a table, spelled here alone: their order, their types, and which are empty where a tile failed.

    path slide_id | minx miny width height pred confidence prob_<class>… category | status error | quality sha256

The second group is empty in the row of a failed tile. The last are optional. Names and geometry are WSInfer's where it
has them, so that its QuPath tools read the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

IDENTITY = ("path", "slide_id")
GEOMETRY = ("minx", "miny", "width", "height")
OUTCOME = ("status", "error")
OPTIONAL = ("quality", "sha256")

# What every table has beside the probabilities.
REQUIRED = (*IDENTITY, *GEOMETRY, "pred", "confidence", "category", *OUTCOME)

_PROBABILITY = "prob_"


def predicted_columns(class_names: Iterable[str]) -> tuple[str, ...]:
    """The columns that a failed tile leaves empty."""
    return (*GEOMETRY, "pred", "confidence", *map(probability_column, class_names), "category")


def table_columns(class_names: Iterable[str], optional: Collection[str] = ()) -> tuple[str, ...]:
    """All columns of a table, in order; `optional` names those of `OPTIONAL` that it has."""
    return (*IDENTITY, *predicted_columns(class_names), *OUTCOME, *(name for name in OPTIONAL if name in optional))


def probability_column(class_name: str) -> str:
    return f"{_PROBABILITY}{class_name}"


def class_names(columns: Iterable[str]) -> tuple[str, ...]:
    """The classes whose probabilities a table has, in its order."""
    return tuple(name.removeprefix(_PROBABILITY) for name in columns if name.startswith(_PROBABILITY))


def column_type(name: str) -> type[int] | type[float] | type[str]:
    """What a column's cells hold; a cell may be empty in any column."""
    if name in GEOMETRY:
        return int
    return float if name == "confidence" or name.startswith(_PROBABILITY) else str
