"""One line a slide: counts add up to the table's, and the file says what it is not."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cervix_engine.table.intervals import wilson
from cervix_engine.table.reader import Table
from cervix_engine.table.summary import NOTE, SlideSummaries, write_summary
from engine.table.tables import Tile, WriteTable

ABNORMAL = (0.7, 0.1, 0.1, 0.05, 0.05)
NORMAL = (0.05, 0.05, 0.1, 0.2, 0.6)


def _summaries(path: Path, *, top: int = 5) -> SlideSummaries:
    table = Table.open(path)
    slides = SlideSummaries(table.class_names, table.categories(), top=top)
    for row in table.rows():
        slides.add(row)
    return slides


def test_counts_shares_and_suspects(write_table: WriteTable) -> None:
    tiles = [
        *(Tile(f"b/{index}", "b", NORMAL) for index in range(3)),
        Tile("b/bad", "b", ABNORMAL),
        Tile("b/worst", "b", (0.5, 0.45, 0.05, 0.0, 0.0)),
        Tile("b/lost", "b", reason="empty: 0 bytes"),
        Tile("a/only", "a", reason="truncated: too short"),
    ]
    first, second = _summaries(write_table(tiles), top=2)
    assert (first.slide_id, first.tiles, first.failed, first.suspects) == ("a", 1, 1, ())
    assert (second.tiles, second.failed) == (6, 1)
    assert [share.count for share in second.classes] == [2, 0, 0, 0, 3]
    assert (second.abnormal.count, second.abnormal.value) == (2, 0.4)
    assert second.abnormal.interval == wilson(2, 5)
    assert [(item.path, round(item.probability, 6)) for item in second.suspects] == [("b/worst", 0.95), ("b/bad", 0.8)]
    assert second.mean_abnormal == pytest.approx((3 * 0.1 + 0.8 + 0.95) / 5)
    assert second.mean_confidence == pytest.approx((3 * 0.6 + 0.7 + 0.5) / 5)
    assert second.flags == ("few_tiles", "many_failed")


def test_equally_suspicious_tiles_keep_the_tables_order(write_table: WriteTable) -> None:
    (slide,) = _summaries(write_table([Tile(f"{index}", "s", ABNORMAL) for index in range(9)]), top=3)
    assert [item.path for item in slide.suspects] == ["0", "1", "2"]


def test_a_slide_is_flagged_for_doubtful_numbers(write_table: WriteTable) -> None:
    (sure,) = _summaries(write_table([Tile(f"{index}") for index in range(30)]))
    assert sure.flags == ()
    even = (0.2, 0.2, 0.22, 0.19, 0.19)
    (unsure,) = _summaries(write_table([Tile(f"{index}", "s", even) for index in range(30)]))
    assert unsure.flags == ("low_confidence",)


def test_the_file_says_that_it_is_no_diagnosis(write_table: WriteTable, tmp_path: Path) -> None:
    slides = _summaries(write_table([Tile("a/x", "a"), Tile("c/y", "c", reason="empty: 0 bytes")]))
    write_summary(tmp_path / "slides.csv", slides)
    with (tmp_path / "slides.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == ["a", "c"]
    assert {row["note"] for row in rows} == {NOTE}
    assert "not a diagnosis" in NOTE
    assert (rows[0]["share_cervix_mep"], rows[0]["tiles_abnormal"], rows[0]["suspect_1"]) == ("1.0000", "0", "a/x")
    assert (rows[1]["share_cervix_mep"], rows[1]["mean_confidence"], rows[1]["suspect_1"]) == ("", "", "")
