"""One row says what the model said: the columns WSInfer's tools read, rounding last, failures without numbers."""

from __future__ import annotations

import csv
import io
import math
import os
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cervix_engine.table.coordinates import BY_NAMES, Locating, Location
from cervix_engine.table.names import escape_name
from cervix_engine.table.reader import Box, Row
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.tile import Outcome, Prediction, TileFailure, TileNotes, TileRef, TileSize
from engine.run.support import CLASS_NAMES, CONTRACT

FORMAT = RowFormat(CONTRACT)
TILE = TileRef(3, "s1/a.png")
CATEGORIES = {item.name: item.category for item in CONTRACT.classes}


def cells(*probabilities: float, tile: TileRef = TILE) -> dict[str, str]:
    row = FORMAT.row(tile, Prediction(TileSize(height=40, width=30), probabilities))
    return dict(zip(FORMAT.columns, row, strict=True))


def test_columns() -> None:
    assert FORMAT.columns == (
        *("path", "slide_id", "minx", "miny", "width", "height", "pred", "confidence"),
        *("prob_cervix_dyk", "prob_cervix_koc", "prob_cervix_mep", "prob_cervix_pab", "prob_cervix_sfi"),
        *("category", "status", "error"),
    )


def test_a_predicted_tile() -> None:
    assert cells(0.1, 0.05, 0.7, 0.1, 0.05) == {
        "path": "s1/a.png",
        "slide_id": "s1",
        "minx": "",
        "miny": "",
        "width": "30",
        "height": "40",
        "pred": "cervix_mep",
        "confidence": "0.700000",
        "prob_cervix_dyk": "0.100000",
        "prob_cervix_koc": "0.050000",
        "prob_cervix_mep": "0.700000",
        "prob_cervix_pab": "0.100000",
        "prob_cervix_sfi": "0.050000",
        "category": "benign",
        "status": "ok",
        "error": "",
    }


def test_a_failed_tile_has_no_numbers() -> None:
    row = dict(zip(FORMAT.columns, FORMAT.row(TILE, TileFailure("decode", "truncated: it ends")), strict=True))
    filled = {name: cell for name, cell in row.items() if cell}
    assert filled == {"path": "s1/a.png", "slide_id": "s1", "status": "failed", "error": "truncated: it ends"}


def test_names_are_escaped_in_both_columns() -> None:
    row = cells(0.2, 0.2, 0.2, 0.2, 0.2, tile=TileRef(0, "=s\n/a,b.png"))
    assert (row["path"], row["slide_id"]) == ("%3Ds%0A/a,b.png", "%3Ds%0A")


@pytest.mark.parametrize("best", range(5))
def test_the_argmax_is_taken_before_rounding(best: int) -> None:
    values = [0.2] * 5
    values[best] = math.nextafter(0.2, 1)
    row = cells(*values)
    assert row["pred"] == CLASS_NAMES[best]
    assert {row[f"prob_{name}"] for name in CLASS_NAMES} == {"0.200000"}


@settings(deadline=None)
@given(values=st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5))
def test_cells_follow_the_probabilities(values: list[float]) -> None:
    row = cells(*values)
    best = max(range(5), key=lambda index: (values[index], -index))  # the first of equals, as argmax has it
    assert row["pred"] == CLASS_NAMES[best]
    assert row["category"] == CATEGORIES[row["pred"]]
    assert row["confidence"] == row[f"prob_{row['pred']}"]
    for name, value in zip(CLASS_NAMES, values, strict=True):
        assert abs(float(row[f"prob_{name}"]) - value) <= 5.0001e-7
        assert len(row[f"prob_{name}"].partition(".")[2]) == 6


HOSTILE = st.text(alphabet=st.sampled_from(list('abx(1,2)"%=\n\r\0 é\u2028\udcff😀[y_/;\x85')), min_size=1, max_size=12)
PREDICTED = st.builds(
    Prediction,
    st.builds(TileSize, st.integers(0, 99_999), st.integers(0, 99_999)),
    st.tuples(*[st.floats(0, 1, width=32) | st.sampled_from([math.nan, 1.0])] * 5),
)
FAILED = st.builds(TileFailure, st.just("decode"), st.text(alphabet='kind: "a", b;\n\ré=', max_size=20))
NOTES = st.builds(
    TileNotes, st.sampled_from(["", "00ff"]), st.lists(st.sampled_from(["blank", 'a"', "b,c"])).map(tuple)
)


class Everywhere:
    """Locates every tile, on a slide whose name is the tile's."""

    def locate(self, name: str, slide_id: str, width: int, height: int) -> Location:
        return Location(name + slide_id, Box(len(name), 0, width, height))

    def __call__(self, row: Row) -> Location | None:
        raise NotImplementedError


@settings(deadline=None, max_examples=300)
@given(
    rows=st.lists(st.tuples(st.builds(TileRef, st.just(0), HOSTILE, HOSTILE), PREDICTED | FAILED, NOTES), max_size=4),
    optional=st.sampled_from([(), ("quality",), ("quality", "sha256")]),
    locator=st.sampled_from([BY_NAMES, Everywhere()]),
)
def test_a_batch_of_lines_is_the_csv_writers_bytes(
    rows: list[tuple[TileRef, Outcome, TileNotes]], optional: tuple[str, ...], locator: Locating
) -> None:
    """The fast path against the plain one: `csv.writer` over the cells of each row."""
    row_format = RowFormat(CONTRACT, optional=optional, locator=locator)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(row_format.row(*row) for row in rows)
    tiles, outcomes, notes = zip(*rows, strict=True) if rows else ((), (), ())
    assert row_format.lines(tiles, outcomes, notes) == text.getvalue().encode()
    for tile, outcome, _ in rows:
        if isinstance(outcome, Prediction):
            assert row_format.slide(tile, outcome) == row_format.row(tile, outcome)[1]


@given(name=HOSTILE | st.text())
def test_a_plain_name_is_escaped_to_itself_and_any_other_as_it_was(name: str) -> None:
    unsafe = re.compile(r"[%\x00-\x1f\x7f-\x9f\ud800-\udfff]|^[=+\-@]")
    assume(not any("\ud800" <= character < "\udc80" for character in name))
    assert escape_name(name) == unsafe.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in os.fsencode(found[0])), name
    )
