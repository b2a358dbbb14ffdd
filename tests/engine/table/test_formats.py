"""Every format holds the same rows as the CSV, to the last digit and byte of a name."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cervix_engine.errors import OutputError, UsageError
from cervix_engine.table.formats import SUFFIXES, open_cells, publish_as
from cervix_engine.table.reader import Table
from engine.table.tables import Tile, WriteTable

NAMES = st.text(min_size=1).map(lambda name: f"s/{name}.jpg")
PROBABILITIES = st.lists(st.integers(1, 1000), min_size=5, max_size=5).map(
    lambda weights: tuple(weight / sum(weights) for weight in weights)
)
TILES = st.lists(
    st.builds(Tile, NAMES, st.sampled_from(["s", "t"]), PROBABILITIES, st.sampled_from([None, "truncated: x, 'y'"])),
    min_size=1,
    max_size=8,
    unique_by=lambda tile: tile.path,
)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(tiles=TILES)
def test_each_format_holds_the_csvs_cells(write_table: WriteTable, suffix: str, tiles: list[Tile]) -> None:
    table = write_table(tiles)
    out = table.with_name(f"copy{suffix}")
    publish_as(table, out)
    assert list(open_cells(out)) == list(open_cells(table))
    assert list(Table.open(out).rows()) == list(Table.open(table).rows())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_tables_are_equal_files(write_table: WriteTable, suffix: str) -> None:
    table = write_table([Tile("a"), Tile("b", reason="empty: 0 bytes")])
    first, second = table.with_name(f"first{suffix}"), table.with_name(f"second{suffix}")
    publish_as(table, first)
    publish_as(table, second)
    assert first.read_bytes() == second.read_bytes()
    assert {path.name for path in table.parent.iterdir()} == {table.name, first.name, second.name}


def test_parquet_is_typed_and_streamed(write_table: WriteTable, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install '.[report]'")
    monkeypatch.setattr("cervix_engine.table.parquet.file.GROUP_ROWS", 3)
    table = write_table([Tile(f"{index}") for index in range(7)])
    publish_as(table, out := table.with_suffix(".parquet"))
    with parquet.ParquetFile(out) as file:
        assert file.num_row_groups == 3
        types = {field.name: str(field.type) for field in file.schema_arrow}
    assert (types["width"], types["confidence"], types["path"]) == ("int64", "double", "string")
    assert list(open_cells(out)) == list(open_cells(table))


def test_what_was_there_stays_where_writing_fails(write_table: WriteTable) -> None:
    table = write_table([Tile("a")])
    out = table.with_name("out.jsonl")
    out.write_text("before", encoding="utf-8")
    with table.open("a", encoding="utf-8") as file:
        csv.writer(file).writerow(["too", "short"])
    with pytest.raises(ValueError, match="line 3: 2 of 16 cells"):
        publish_as(table, out)
    assert out.read_text(encoding="utf-8") == "before"
    assert not list(table.parent.glob(".*"))


def test_an_unknown_suffix_and_a_missing_folder_are_refused(write_table: WriteTable, tmp_path: Path) -> None:
    table = write_table([Tile("a")])
    with pytest.raises(UsageError, match=r"\.csv, \.csv\.gz, \.jsonl, \.parquet"):
        publish_as(table, tmp_path / "x.tsv")
    with pytest.raises(OutputError, match="No such file"):
        publish_as(table, tmp_path / "none" / "x.jsonl")


@pytest.mark.parametrize("suffix", [".csv.gz", ".parquet", ".jsonl"])
def test_a_damaged_table_is_refused(write_table: WriteTable, suffix: str) -> None:
    table = write_table([Tile(f"{index}") for index in range(50)])
    publish_as(table, out := table.with_name(f"copy{suffix}"))
    out.write_bytes(out.read_bytes()[:-30])
    with pytest.raises(UsageError):
        list(Table.open(out).rows())
