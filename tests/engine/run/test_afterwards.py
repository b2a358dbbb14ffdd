"""What `cervix-batch` makes of its table: after the commit, and never at the table's cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.errors import OutputError
from cervix_engine.run.verify import verify_table
from engine.run.support import draw_folder

Run = Callable[..., Result]


@pytest.fixture
def run(bundle: Bundle, tmp_path: Path) -> Run:
    study = draw_folder(tmp_path / "study", 8)
    for index, path in enumerate(sorted(path for path in study.rglob("*.*") if path.is_file())):
        path.rename(path.with_name(f"tile_x{100 * index}_y0{path.suffix}"))

    def invoke(*options: str) -> Result:
        command = [str(study), "--out", str(tmp_path / "preds.csv"), "--model", str(bundle.root), *options]
        return CliRunner().invoke(main, command)

    return invoke


def test_all_of_them_at_once(run: Run, tmp_path: Path) -> None:
    summary, geojson, page = tmp_path / "slides.csv", tmp_path / "objects", tmp_path / "report.html"
    done = run("--summary", str(summary), "--geojson", str(geojson), "--report", str(page))
    assert done.exit_code == 0, done.output
    assert "slide_a" in summary.read_text(encoding="utf-8")
    assert geojson.is_dir()
    assert "<html" in page.read_text(encoding="utf-8")
    assert f"report: {page}\n" in done.stderr


def test_a_failure_leaves_the_table_and_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutputError("no space")

    monkeypatch.setattr("cervix_engine.report.make.write_summary", fail)
    done = run("--summary", str(tmp_path / "slides.csv"), "-q")
    assert done.exit_code == 1
    assert done.stderr == f"error: {tmp_path}/preds.csv is done, but what was to be made of it is not: no space\n"
    assert verify_table(tmp_path / "preds.csv") == []


def test_what_is_there_already_is_refused_before_the_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("mine", encoding="utf-8")
    done = run("--summary", str(tmp_path / "slides.csv"))
    assert done.exit_code == 2
    assert "--overwrite" in done.stderr
    assert not (tmp_path / "preds.csv").exists()


def test_quiet_says_nothing_and_verbose_tells_of_each_stage(run: Run) -> None:
    assert run("-q").output == ""
    said = run("--overwrite", "-v").stderr
    assert all(f"  {stage} " in said for stage in ("list", "decode", "infer", "write"))
