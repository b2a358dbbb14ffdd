"""1 % of the rows of a table of 10,000 are altered in every way: each is named by its line, and no other row is."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.budget import FailureBudget
from cervix_engine.run.verify import verify_table
from engine.run.support import CLASS_NAMES, FINISHED, choose_fake, draw_folder

pytestmark = pytest.mark.timeout(300)

ROWS, PLANTED = 10_000, 100
FAR = 50  # between rows that change places: nearer ones could be put in order by moving others


@pytest.fixture(scope="module")
def finished(fake_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 10,000 rows: the same few tiles under many names, so that rows are alike but for their path."""
    root = tmp_path_factory.mktemp("many")
    few = sorted(draw_folder(root / "few", 8).rglob("tile_*"))
    few[3].write_bytes(b"no tile")
    (root / "study").mkdir()
    for number in range(ROWS):
        # Twice, so that one changed digit never makes another tile's name.
        os.link(few[number % 8], root / "study" / f"{number}_{number}{few[number % 8].suffix}")
    config = BatchConfig(
        tiles=root / "study",
        out=root / "preds.csv",
        model=fake_bundle.root,
        batch_size=64,
        workers=2,
        budget=FailureBudget(share=1.0),
    )
    record = predict_folder(config, setup=RunSetup(choose_fake))
    assert (record.found, record.failed) == (ROWS, ROWS // 8)
    return config.out


@pytest.fixture
def table(finished: Path, tmp_path: Path) -> Path:
    for name in FINISHED:
        shutil.copy(finished.parent / name, tmp_path)
    return tmp_path / "preds.csv"


@dataclass
class Line:
    """A line of the altered table: what it holds, which row that was, and how `cervix-verify` must call it."""

    text: bytes
    row: int
    kind: str | None = None


class Forger:
    """Alters rows that it has not altered yet; `missing` are those that are then not there as they were written."""

    def __init__(self, table: Path, seed: int) -> None:
        self._header, *rows = table.read_bytes().splitlines(keepends=True)
        self._lines: list[Line | None] = [Line(text, row) for row, text in enumerate(rows)]
        self._copies: list[tuple[int, Line]] = []
        self._choose = random.Random(seed)
        self._places = self._choose.sample(range(len(rows) - 1), 3 * PLANTED)
        self.missing: set[int] = set()

    def digit(self) -> None:
        line = self._edited()
        place = self._choose.choice([at for at, byte in enumerate(line.text) if chr(byte).isdigit()])
        other = self._choose.choice([digit for digit in b"0123456789" if digit != line.text[place]])
        line.text = line.text[:place] + bytes([other]) + line.text[place + 1 :]

    def predicted_class(self) -> None:
        line = self._edited()
        cells = line.text.split(b",")
        cells[6] = self._choose.choice([name.encode() for name in CLASS_NAMES if name.encode() != cells[6]])
        line.text = b",".join(cells)

    def status(self) -> None:
        line = self._edited()
        ok = b",ok," in line.text
        line.text = line.text.replace(b",ok,", b",failed,") if ok else line.text.replace(b",failed,", b",ok,")

    def row_deleted(self) -> None:
        place = self._places.pop()
        self._lines[place] = None
        self.missing.add(place)

    def row_doubled(self) -> None:
        row = self._places.pop()
        # Somewhere behind the original, and put there last, so that all other places stay what they are.
        self._copies.append(
            (self._choose.randrange(row + 1, len(self._lines)), Line(self._line(row).text, row, "doubled"))
        )

    def rows_swapped(self) -> None:
        one = self._places.pop()
        other = next(place for place in self._places if abs(place - one) > FAR)
        self._places.remove(other)
        self._line(one).kind = self._line(other).kind = "moved"
        self._lines[one], self._lines[other] = self._lines[other], self._lines[one]

    def line_end(self) -> None:
        line = self._line(self._places.pop())
        line.text, line.kind = line.text.replace(b"\n", b"\r\n"), "line_end"

    def header(self) -> None:
        self._header = self._header.replace(b"confidence", b"certainty")

    def write(self, table: Path) -> set[tuple[str, int | None]]:
        """The altered table; gives all (kind, line) that must be found in lines that are there."""
        for place, copy in sorted(self._copies, key=lambda item: -item[0]):
            self._lines.insert(place, copy)
        lines = [line for line in self._lines if line is not None]
        table.write_bytes(self._header + b"".join(line.text for line in lines))
        return {(line.kind, number) for number, line in enumerate(lines, start=2) if line.kind is not None}

    def _line(self, place: int) -> Line:
        line = self._lines[place]
        assert line is not None
        return line

    def _edited(self) -> Line:
        line = self._line(self._places.pop())
        line.kind = "edited"
        self.missing.add(line.row)
        return line


EDITS = (
    Forger.digit,
    Forger.predicted_class,
    Forger.status,
    Forger.row_deleted,
    Forger.row_doubled,
    Forger.rows_swapped,
    Forger.line_end,
)


def assert_all_found(table: Path, forger: Forger) -> None:
    planted = forger.write(table)
    findings = verify_table(table)
    assert {(item.kind, item.line) for item in findings if item.kind != "missing"} == planted
    missing = [int(item.message.split()[1]) - 1 for item in findings if item.kind == "missing"]
    assert missing == sorted(forger.missing)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_a_hundred_edits_of_one_kind(table: Path, edit: Callable[[Forger], None]) -> None:
    forger = Forger(table, seed=7)
    for _ in range(PLANTED):
        edit(forger)
    assert_all_found(table, forger)


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_edits_of_all_kinds(table: Path, seed: int) -> None:
    forger = Forger(table, seed)
    for number in range(PLANTED):
        EDITS[number % len(EDITS)](forger)
    assert_all_found(table, forger)


def test_an_edited_header_beside_edited_rows(table: Path) -> None:
    forger = Forger(table, seed=1)
    forger.digit()
    forger.header()
    (edited,) = forger.write(table)
    findings = [(finding.kind, finding.line) for finding in verify_table(table)]
    assert findings == [("header", 1), edited, ("missing", None)]


def test_the_table_as_it_was_written_has_no_findings(table: Path) -> None:
    assert verify_table(table) == []
