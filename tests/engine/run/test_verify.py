"""`cervix-verify` names every row that is not as its run wrote it, and nothing else."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.verify import main
from cervix_engine.errors import UsageError
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.verify import Finding, verify_table

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def finished(bundle: Bundle, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "preds.csv"
    predict_folder(BatchConfig(tiles=tiles, out=out, model=bundle.root, batch_size=8))
    return out


@pytest.fixture
def table(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished table and what lies beside it, to be altered."""
    for name in ("preds.csv", "preds.csv.run.json", "preds.csv.rows"):
        shutil.copy(finished.parent / name, tmp_path)
    return tmp_path / "preds.csv"


def lines_of(table: Path) -> list[bytes]:
    return table.read_bytes().splitlines(keepends=True)


def places(findings: list[Finding], kind: str) -> set[int | None]:
    return {finding.line for finding in findings if finding.kind == kind}


def test_an_untouched_table_has_no_findings(table: Path) -> None:
    assert verify_table(table) == []


@pytest.mark.parametrize("seed", range(5))
def test_every_edited_row_is_named_and_no_other(table: Path, seed: int) -> None:
    lines, choose = lines_of(table), random.Random(seed)
    edited = set(choose.sample(range(1, len(lines)), 3))
    for index in edited:
        cells = lines[index].split(b",")
        place = choose.randrange(len(cells) - 1)
        cells[place] = cells[place][:-1] + (b"8" if cells[place][-1:] != b"8" else b"9")
        lines[index] = b",".join(cells)
    table.write_bytes(b"".join(lines))
    findings = verify_table(table)
    assert places(findings, "edited") == {index + 1 for index in edited}
    assert [finding.kind for finding in findings].count("missing") == len(edited)
    assert {finding.kind for finding in findings} == {"edited", "missing"}


def test_a_missing_row_is_found(table: Path) -> None:
    lines = lines_of(table)
    table.write_bytes(b"".join(lines[:10] + lines[11:]))
    (finding,) = verify_table(table)
    assert (finding.kind, finding.message[:6]) == ("missing", "row 10")


def test_a_doubled_row_is_found(table: Path) -> None:
    lines = lines_of(table)
    table.write_bytes(b"".join([*lines[:10], lines[9], *lines[10:]]))
    (finding,) = verify_table(table)
    assert (finding.kind, finding.line) == ("doubled", 11)


def test_rows_that_changed_places_are_found(table: Path) -> None:
    lines = lines_of(table)
    lines[4], lines[7] = lines[7], lines[4]
    table.write_bytes(b"".join(lines))
    assert [(finding.kind, finding.line) for finding in verify_table(table)] == [("moved", 5), ("moved", 8)]


@pytest.mark.parametrize(("taken", "put"), [(5, 40), (40, 5)])
def test_of_many_rows_only_the_one_that_was_moved_is_named(table: Path, taken: int, put: int) -> None:
    lines = lines_of(table)
    lines.insert(put, lines.pop(taken))
    table.write_bytes(b"".join(lines))
    assert [(finding.kind, finding.line) for finding in verify_table(table)] == [("moved", put + 1)]


def test_a_foreign_row_is_found(table: Path) -> None:
    table.write_bytes(table.read_bytes() + lines_of(table)[1].replace(b"tile_", b"cell_"))
    (finding,) = verify_table(table)
    assert (finding.kind, finding.line) == ("edited", len(lines_of(table)))


def test_an_edited_header_is_found(table: Path) -> None:
    table.write_bytes(table.read_bytes().replace(b"prob_cervix_dyk", b"prob_cervix_koc", 1))
    (finding,) = verify_table(table)
    assert (finding.kind, finding.line) == ("header", 1)


def test_other_line_ends_are_said_to_be_that(table: Path) -> None:
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))
    assert [(finding.kind, finding.line) for finding in verify_table(table)] == [("line_end", None)]


def test_one_other_line_end_is_named(table: Path) -> None:
    lines = lines_of(table)
    lines[6] = lines[6].replace(b"\n", b"\r\n")
    lines[-1] = lines[-1].removesuffix(b"\n")
    table.write_bytes(b"".join(lines))
    assert [(finding.kind, finding.line) for finding in verify_table(table)] == [("line_end", 7), ("line_end", 51)]


def test_bytes_that_belong_to_no_row_are_found(table: Path) -> None:
    lines = lines_of(table)
    lines[3] = lines[3].replace(b"\n", b"\r\r\n")
    table.write_bytes(b"".join(lines))
    assert [(finding.kind, finding.line) for finding in verify_table(table)] == [("line_end", 4)]


def test_an_emptied_table_misses_every_row(table: Path) -> None:
    rows = len(lines_of(table)) - 1
    table.write_bytes(b"")
    assert [finding.kind for finding in verify_table(table)].count("missing") == rows


def test_a_report_whose_books_were_changed_is_found(table: Path) -> None:
    path = table.with_name("preds.csv.run.json")
    report = json.loads(path.read_text())
    report["ok"] -= 1
    path.write_text(json.dumps(report))
    assert [finding.kind for finding in verify_table(table)] == ["books"]


@pytest.mark.parametrize("name", ["preds.csv", "preds.csv.run.json", "preds.csv.rows"])
def test_without_its_files_there_is_nothing_to_check(table: Path, name: str) -> None:
    table.with_name(name).unlink()
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        verify_table(table)


def test_altered_checks_are_not_believed(table: Path) -> None:
    path = table.with_name("preds.csv.rows")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UsageError, match="not the one that the run wrote"):
        verify_table(table)


def test_the_command_says_what_is_wrong_and_how_much(table: Path) -> None:
    untouched = CliRunner().invoke(main, [str(table)])
    assert (untouched.exit_code, "as the run wrote it" in untouched.stderr) == (0, True)
    lines = lines_of(table)
    table.write_bytes(b"".join(lines[:1] + lines[30:]))
    altered = CliRunner().invoke(main, [str(table), "--json"])
    assert altered.exit_code == 1
    assert len(json.loads(altered.stdout)) == 29
    assert "and 9 more" in altered.stderr
    assert CliRunner().invoke(main, [str(table.with_name("no.csv"))]).exit_code == 2
