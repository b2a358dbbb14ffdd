"""A run's table in each format: the same rows as the CSV's, verified, reported, compared and retried like it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli import compare, report, verify
from cervix_engine.cli.batch import main
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.verify import verify_table
from cervix_engine.table.formats import csv_lines
from engine.run.support import beside, draw_folder, drawn_tile, finished_files

FILES = [".csv.gz", ".jsonl", ".parquet"]
SUFFIXES = [*FILES, pytest.param("", id="folder of .parquet")]


@pytest.fixture(autouse=True)
def _pyarrow_where_needed(request: pytest.FixtureRequest) -> None:
    if ".parquet" in request.node.name:
        pytest.importorskip("pyarrow", reason="needs pyarrow: pip install '.[report]'")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """9 tiles, one of them bad."""
    root = draw_folder(tmp_path / "study", 9)
    (root / "bad.png").write_bytes(b"no tile")
    return root


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_command_takes_every_format(suffix: str, few: Path, bundle: Bundle, tmp_path: Path) -> None:
    (folder := tmp_path / "out").mkdir()
    plain, out = tmp_path / "preds.csv", folder / f"preds{suffix}"
    for table in (plain, out):
        done = predict_folder(BatchConfig(tiles=few, out=table, model=bundle.root, batch_size=4))
        assert (done.ok, done.failed) == (9, 1)
    assert b"".join(csv_lines(out)) == plain.read_bytes()
    assert beside(out) == finished_files(out.name)
    assert verify_table(out) == []
    run = CliRunner().invoke
    assert run(verify.main, [str(out)]).exit_code == 0
    assert "10 tiles in both tables; 0 decisions changed" in run(compare.main, [str(out), str(plain)]).output
    page = tmp_path / "report.html"
    assert run(report.main, [str(out), "--out", str(page)]).exit_code == 0
    assert page.is_file()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_retry_mends_the_table_in_its_format(suffix: str, few: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / f"preds{suffix}"
    config = BatchConfig(tiles=few, out=out, model=bundle.root, batch_size=4)
    predict_folder(config)
    before = list(csv_lines(out))
    (few / "bad.png").write_bytes(drawn_tile(77))
    command = [str(few), "--out", str(out), "--model", str(bundle.root), "--retry-failures"]
    assert CliRunner().invoke(main, command).exit_code == 0
    after = list(csv_lines(out))
    assert [line for line in before if b"failed" not in line] == [line for line in after if b"bad.png" not in line]
    assert verify_table(out) == []


@pytest.mark.parametrize("suffix", FILES)
def test_a_changed_table_is_found(suffix: str, few: Path, bundle: Bundle, tmp_path: Path) -> None:
    first, second = (tmp_path / f"{name}{suffix}" for name in ("first", "second"))
    predict_folder(BatchConfig(tiles=few, out=first, model=bundle.root, batch_size=4))
    (few / "bad.png").write_bytes(drawn_tile(77))
    predict_folder(BatchConfig(tiles=few, out=second, model=bundle.root, batch_size=4))
    shutil.copy(second, first)
    assert [finding.kind for finding in verify_table(first)] == ["edited", "missing"]
    first.write_bytes(second.read_bytes()[:-20])
    assert [finding.kind for finding in verify_table(first)] == ["unreadable"]


def test_an_unknown_suffix_is_refused_before_any_work(few: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "out").mkdir()
    done = CliRunner().invoke(main, [str(few), "--out", str(folder / "preds.xlsx"), "--model", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "a table's name ends in .csv, .csv.gz, .jsonl, .parquet" in done.stderr
    assert list(folder.iterdir()) == []


def test_a_missing_pyarrow_is_known_before_any_work(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (folder := tmp_path / "out").mkdir()
    done = CliRunner().invoke(main, [str(few), "--out", str(folder / "p.parquet"), "--model", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "pip install '.[report]'" in done.stderr
    assert list(folder.iterdir()) == []
