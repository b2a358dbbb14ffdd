"""What a row decides by an operating point can be decided again from the text of the table alone."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.contract import Category, ModelContract, OperatingPoint, TileClass
from cervix_engine.errors import ContractError
from cervix_engine.table.columns import class_names, table_columns
from cervix_engine.table.decisions import in_millionths
from cervix_engine.table.formats import csv_line
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.tile import NO_NOTES, Prediction, TileFailure, TileRef, TileSize
from engine.run.support import CLASS_NAMES, CONTRACT

TILE = TileRef(3, "s1/a.png")
POINT = OperatingPoint(0.2, review_below=0.5, review_within=0.05)
DECIDED = replace(CONTRACT, operating_point=POINT)
SERIOUS = {"abnormal": 2, "benign": 1, "normal": 0}


def cells(contract: ModelContract, *probabilities: float) -> dict[str, str]:
    row_format = RowFormat(contract)
    row = row_format.row(TILE, Prediction(TileSize(height=40, width=30), probabilities))
    return dict(zip(row_format.columns, row, strict=True))


def decided_by_hand(row: dict[str, str], point: OperatingPoint) -> dict[str, str]:
    """Of the text of the classes' probabilities, in decimal arithmetic."""
    sums = dict.fromkeys(DECIDED.categories, Decimal(0))
    for item in DECIDED.classes:
        sums[item.category] += Decimal(row[f"prob_{item.name}"])
    sums = {name: min(Decimal(1), value) for name, value in sums.items()}
    abnormal, at = sums["abnormal"], Decimal(str(point.abnormal_at))
    unsure = Decimal(row["confidence"]) < Decimal(str(point.review_below))
    close = abs(abnormal - at) < Decimal(str(point.review_within))
    return {
        **{f"prob_{name}": f"{value:.6f}" for name, value in sums.items()},
        "category": max(sums, key=lambda name: (sums[name], SERIOUS[name])),
        "abnormal": "yes" if abnormal >= at else "no",
        "review": "yes" if unsure or close else "no",
    }


def test_the_columns_of_an_operating_point_stand_behind_the_category() -> None:
    assert RowFormat(DECIDED).columns == (
        *("path", "slide_id", "minx", "miny", "width", "height", "pred", "confidence"),
        *("prob_cervix_dyk", "prob_cervix_koc", "prob_cervix_mep", "prob_cervix_pab", "prob_cervix_sfi"),
        *("category", "prob_normal", "prob_benign", "prob_abnormal", "abnormal", "review", "status", "error"),
    )
    assert class_names(RowFormat(DECIDED).columns) == CLASS_NAMES


def test_the_category_is_a_sum_and_may_be_another_than_the_top_class_has() -> None:
    row = cells(DECIDED, 0.3, 0.3, 0.4, 0.0, 0.0)
    assert (row["pred"], row["category"], row["prob_abnormal"]) == ("cervix_mep", "abnormal", "0.600000")
    assert (row["abnormal"], row["review"]) == ("yes", "yes"), "the confidence is below 0.5"
    assert cells(CONTRACT, 0.3, 0.3, 0.4, 0.0, 0.0)["category"] == "benign", "as before, without an operating point"


@pytest.mark.parametrize(
    ("abnormal", "expected"),
    [
        (0.2, ("yes", "yes")),
        (0.199999, ("no", "yes")),
        (0.150001, ("no", "yes")),
        (0.15, ("no", "no")),
        (0.249999, ("yes", "yes")),
        (0.25, ("yes", "no")),
        (0.1999996, ("yes", "yes")),  # written as 0.200000
    ],
)
def test_what_is_written_decides_at_the_thresholds(abnormal: float, expected: tuple[str, str]) -> None:
    row = cells(DECIDED, abnormal, 0.0, 0.0, 1 - abnormal, 0.0)
    assert (row["abnormal"], row["review"]) == expected


def test_equal_sums_count_as_the_more_serious_and_none_is_above_one() -> None:
    assert cells(DECIDED, 0.25, 0.25, 0.0, 0.25, 0.25)["category"] == "abnormal"
    assert cells(DECIDED, 0.0, 0.0, 0.5, 0.5, 0.0)["category"] == "benign"
    row = cells(DECIDED, 0.500001, 0.500001, 0.0, 0.0, 0.0)
    assert (row["prob_cervix_dyk"], row["prob_abnormal"]) == ("0.500001", "1.000000")


PROBABILITIES = st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5) | st.sampled_from(
    [[0.2, 0.0, 0.4, 0.4, 0.0], [0.1, 0.1, 0.3, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]]
)


@settings(deadline=None, max_examples=300)
@given(values=PROBABILITIES, at=st.integers(1, 10**6), below=st.integers(0, 10**6), within=st.integers(0, 10**6))
def test_a_row_can_be_decided_again_from_its_text(values: list[float], at: int, below: int, within: int) -> None:
    probabilities = tuple(np.array(values, np.float32).tolist())
    point = OperatingPoint(at / 1e6, below / 1e6, within / 1e6)
    contract = replace(CONTRACT, operating_point=point)
    row = cells(contract, *probabilities)
    expected = decided_by_hand(row, point)
    assert {name: row[name] for name in expected} == expected
    outcome = Prediction(TileSize(height=40, width=30), probabilities)
    line = RowFormat(contract).lines([TILE], [outcome], [NO_NOTES])
    assert line == csv_line(row.values()), "the fast path writes the same"


@given(value=st.floats(0, 1, width=32))
def test_millionths_are_the_written_digits(value: float) -> None:
    assert in_millionths(value) == int(f"{value:.6f}".replace(".", ""))


def test_a_failed_tile_decides_nothing() -> None:
    row_format = RowFormat(DECIDED)
    row = zip(row_format.columns, row_format.row(TILE, TileFailure("read", "gone: x")), strict=True)
    assert {name for name, cell in row if cell} == {"path", "slide_id", "status", "error"}


def classes(**categories: Category) -> tuple[TileClass, ...]:
    return tuple(TileClass(name, name, category) for name, category in categories.items())


def test_a_class_that_is_a_whole_category_has_one_column_for_both() -> None:
    two = ModelContract(classes(abnormal="abnormal", normal="normal"), operating_point=POINT)
    columns = RowFormat(two).columns
    assert [name for name in columns if name.startswith("prob_")] == ["prob_abnormal", "prob_normal"]
    assert class_names(columns) == ("abnormal", "normal")
    assert cells(two, 0.3, 0.7)["abnormal"] == "yes"
    mixed = ModelContract(classes(lsil="abnormal", hsil="abnormal", normal="normal"), operating_point=POINT)
    assert class_names(RowFormat(mixed).columns) == ("lsil", "hsil", "normal")
    assert len(set(RowFormat(mixed).columns)) == len(RowFormat(mixed).columns)


def test_classes_that_an_operating_point_cannot_be_said_of_are_refused() -> None:
    with pytest.raises(ContractError, match="both that class and that category"):
        ModelContract(classes(abnormal="abnormal", hsil="abnormal", other="normal"), operating_point=POINT)
    with pytest.raises(ContractError, match="classes that are abnormal"):
        ModelContract(classes(a="benign", b="normal"), operating_point=POINT)
    assert class_names(table_columns(("a", "normal"))) == ("a", "normal"), "without decisions every one is a class"
