"""A table is read as it was written, row by row; what is no table is refused with the place."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract, OperatingPoint, TileClass
from cervix_engine.errors import UsageError
from cervix_engine.table.columns import cell_value
from cervix_engine.table.formats import publish_as
from cervix_engine.table.reader import Box, Table
from engine.table.tables import CONTRACT, Tile, WriteTable

PROBABILITIES = ("confidence", "prob_cervix_koc", "prob_abnormal")


def test_rows_come_back_typed(write_table: WriteTable) -> None:
    table = Table.open(write_table([Tile("s/a,\n%.jpg"), Tile("s/b.jpg", reason="truncated: it ends, early")]))
    assert table.class_names == CONTRACT.class_names
    good, bad = table.rows()
    assert (good.path, good.pred, good.category, good.confidence) == ("s/a,%0A%25.jpg", "cervix_mep", "benign", 0.6)
    assert good.probabilities == (0.1, 0.1, 0.6, 0.1, 0.1)
    assert (good.width, good.height, good.corner, good.box, good.error) == (120, 100, None, None, None)
    assert (bad.number, bad.pred, bad.probabilities, bad.width) == (1, None, (), None)
    assert bad.error == "truncated: it ends, early"


def _edit(path: Path, column: str, cell: str) -> Path:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[1][column] = cell
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_corner_makes_a_box(write_table: WriteTable) -> None:
    path = write_table([Tile("a"), Tile("b")])
    _edit(_edit(path, "minx", "512"), "miny", "0")
    assert [row.box for row in Table.open(path).rows()] == [None, Box(512, 0, 120, 100)]


@pytest.mark.parametrize(
    ("column", "cell"), [("status", "maybe"), ("category", ""), ("confidence", "high"), ("width", "1.5"), ("minx", "1")]
)
def test_a_broken_row_is_refused_with_its_number(write_table: WriteTable, column: str, cell: str) -> None:
    path = _edit(write_table([Tile("a"), Tile("b")]), column, cell)
    with pytest.raises(UsageError, match=r"preds\.csv, line 3: "):
        list(Table.open(path).rows())


DECIDED = ModelContract(SIPAKMED_CLASSES, operating_point=OperatingPoint(0.3))
IMPOSSIBLE = ("nan", "inf", "-inf", "2", "-1", "7", "1.000001", "")
NO_PROBABILITY = [(column, cell, "is no probability") for column in PROBABILITIES for cell in IMPOSSIBLE]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [*NO_PROBABILITY, ("path", "", "no path"), ("error", "empty: 0 bytes", "status 'ok' with the error")],
)
def test_what_no_run_writes_is_refused_in_every_format(
    write_table: WriteTable, suffix: str, column: str, cell: str, words: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow: pip install '.[report]'")
    edited = _edit(write_table([Tile("a"), Tile("b")], contract=DECIDED), column, cell)
    path = edited.with_name(f"edited{suffix}")
    if suffix == ".jsonl":
        _as_jsonl(edited, path)
    else:
        publish_as(edited, path)
    line = 2 if suffix == ".jsonl" else 3  # it has no header
    with pytest.raises(UsageError, match=rf"edited\{suffix}, line {line}: .*{words}"):
        list(Table.open(path).rows())


def _as_jsonl(table: Path, path: Path) -> None:
    """As Python's `json` writes it, NaN and Infinity included."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = [{name: cell_value(name, cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("cell", ["0", "1", "0.000000", "1.000000", "1e-7", "-0.0"])
def test_the_ends_of_what_is_possible_are_read(write_table: WriteTable, cell: str) -> None:
    path = write_table([Tile("a"), Tile("b")], contract=DECIDED)
    for column in PROBABILITIES:
        _edit(path, column, cell)
    row = list(Table.open(path).rows())[1]
    assert (row.confidence, row.prob_abnormal, row.probabilities[1]) == (float(cell),) * 3


def test_decisions_without_their_probability_are_no_table(write_table: WriteTable) -> None:
    path = write_table([Tile("a")], contract=DECIDED)
    path.write_text(path.read_text(encoding="utf-8").replace("prob_abnormal", "mine"), encoding="utf-8")
    with pytest.raises(UsageError, match="line 1: no column prob_abnormal: "):
        Table.open(path)


@pytest.mark.parametrize("line", ["[1,2]", "3", '"text"', "null", "[" * 100_000, "", "{"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, write_table: WriteTable, line: str, number: int) -> None:
    path = tmp_path / "made.jsonl"
    publish_as(write_table([Tile("a"), Tile("b")]), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=rf"made\.jsonl, line {number}: ") as refused:
        list(Table.open(path).rows())
    assert ("expected an object" in str(refused.value)) == (line in ("[1,2]", "3", '"text"', "null"))


def test_a_number_beyond_all_bounds_is_refused(tmp_path: Path, write_table: WriteTable) -> None:
    path = tmp_path / "made.jsonl"
    publish_as(write_table([Tile("a")]), path)
    text = path.read_text(encoding="utf-8").replace('"confidence": 0.6', f'"confidence": 1{"0" * 400}')
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="line 1: "):
        list(Table.open(path).rows())


def test_a_short_row_is_refused(write_table: WriteTable) -> None:
    path = write_table([Tile("a")])
    path.write_text(path.read_text(encoding="utf-8") + "b,s\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 3: 2 of 16 cells"):
        list(Table.open(path).rows())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "other.csv is empty"),
        (b"path,pred\n", "line 1: no column slide_id, .*: found path, pred; expected a table of cervix-batch"),
        (b"\xff\xfe\x00", "line 1: bytes that are not text in UTF-8"),
        (b"path\x00\n", "line 1: bytes that are not text in UTF-8"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        Table.open(path)


def test_a_missing_table_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Table.open(tmp_path / "gone.csv")
    with pytest.raises(UsageError, match=r"ends in \.csv"):
        Table.open(tmp_path / "table.xlsx")


def test_categories_come_from_the_rows_or_the_contract(write_table: WriteTable) -> None:
    table = Table.open(write_table([Tile("a")]))
    expected = ("abnormal", "abnormal", "benign", "normal", "normal")
    assert table.categories() == table.categories(CONTRACT) == expected
    other = ModelContract((TileClass("x", "X", "normal"), TileClass("y", "Y", "normal")))
    with pytest.raises(UsageError, match="are not the table's"):
        table.categories(other)


def test_a_category_that_nothing_tells_is_asked_for(write_table: WriteTable) -> None:
    path = write_table([Tile("a")])
    path.write_text(path.read_text(encoding="utf-8").replace("prob_cervix_koc", "prob_new"), encoding="utf-8")
    with pytest.raises(UsageError, match="never predicts new: name its bundle with --model"):
        Table.open(path).categories()


def test_a_table_that_pandas_wrote_is_read_alike(write_table: WriteTable) -> None:
    path = write_table([Tile("a"), Tile("b", reason="truncated: it ends"), Tile("c")])
    before = list(Table.open(path).rows())
    # pandas makes floats of a column of whole numbers with an empty cell.
    content = path.read_text(encoding="utf-8").replace(",120,100,", ",120.0,100.0,")
    path.write_text(content, encoding="utf-8-sig")
    assert content.count(",120.0,") == 2
    assert list(Table.open(path).rows()) == before


def test_a_table_that_was_saved_with_semicolons_is_refused(write_table: WriteTable) -> None:
    path = write_table([Tile("a")])
    path.write_text(path.read_text(encoding="utf-8").replace(",", ";"), encoding="utf-8")
    with pytest.raises(UsageError, match="line 1: columns are separated by semicolons: save the file with commas"):
        Table.open(path)


@pytest.mark.parametrize(
    "paths",
    [["a", "a"], ["a", "b", "c", "b"], ["c", "b", "a", "c"], ["a", "a%b", "a%b"]],
    ids=["neighbours", "one returns", "in descending order", "escaped"],
)
def test_a_path_that_is_there_twice_is_refused(write_table: WriteTable, paths: list[str]) -> None:
    *first, last = [Tile(path) for path in paths]
    earlier = 2 + paths.index(paths[-1])
    with pytest.raises(
        UsageError, match=f"line {1 + len(paths)}: '{paths[-1].replace('%', '%25')}' is already in line {earlier}"
    ):
        list(Table.open(write_table([*first, last])).rows())


@pytest.mark.parametrize("order", [["a", "b", "é", "\udcff"], ["b", "a", "d", "c"]])
def test_paths_in_any_order_are_read(write_table: WriteTable, order: list[str]) -> None:
    assert len(list(Table.open(write_table([Tile(path) for path in order])).rows())) == len(order)


def test_a_class_that_the_table_does_not_have_is_refused(write_table: WriteTable) -> None:
    path = _edit(write_table([Tile("a"), Tile("b")]), "pred", "cervix_new")
    with pytest.raises(UsageError, match=r"line 3: .*'cervix_new'"):
        list(Table.open(path).rows())
