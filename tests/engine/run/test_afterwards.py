"""What `cervix-batch` makes of its table: after the commit, and never at the table's cost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
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


def a_full_disk(folder: Path, *names: str) -> None:
    """Let some files not be written: a folder lies where each would be made."""
    for name in names:
        (folder / f".{name}.tmp").mkdir()


def test_one_that_fails_leaves_the_table_and_the_others_and_is_one_line(run: Run, tmp_path: Path) -> None:
    a_full_disk(tmp_path, "slides.csv")
    summary, geojson, page = tmp_path / "slides.csv", tmp_path / "objects", tmp_path / "report.html"
    done = run("--summary", str(summary), "--geojson", str(geojson), "--report", str(page), "-q")
    assert done.exit_code == 1
    assert done.stderr.startswith(
        f"error: {tmp_path}/preds.csv is done, but what was to be made of it is not: cannot write {summary}: "
    )
    assert done.stderr.count("\n") == 1
    assert verify_table(tmp_path / "preds.csv") == []
    assert (geojson.is_dir(), page.is_file(), summary.exists()) == (True, True, False)


def test_the_same_command_again_makes_what_is_missing(run: Run, tmp_path: Path) -> None:
    a_full_disk(tmp_path, "slides.csv", "report.html")
    summary, page = tmp_path / "slides.csv", tmp_path / "report.html"
    command = ("--summary", str(summary), "--report", str(page))
    failed = run(*command)
    assert failed.exit_code == 1
    assert f"cannot write {summary}" in failed.stderr
    assert f"cannot write {page}" in failed.stderr
    (tmp_path / ".slides.csv.tmp").rmdir()
    table, made = (tmp_path / "preds.csv").stat(), run(*command)
    assert (made.exit_code, summary.is_file(), page.exists()) == (1, True, False)
    (tmp_path / ".report.html.tmp").rmdir()
    kept = summary.stat()
    done = run(*command)
    assert (done.exit_code, page.is_file()) == (0, True)
    assert (tmp_path / "preds.csv").stat().st_mtime_ns == table.st_mtime_ns
    assert summary.stat().st_mtime_ns == kept.st_mtime_ns
    again = run(*command)
    assert again.exit_code == 2
    assert "preds.csv is there already: pass --overwrite" in again.stderr


@pytest.mark.parametrize("other", [("-b", "7"), ("--hash",), ("--slide", "{slide}/*")])
def test_a_table_that_was_made_otherwise_is_not_taken_for_this_command_s(
    run: Run, tmp_path: Path, other: tuple[str, ...]
) -> None:
    assert run().exit_code == 0
    refused = run("--summary", str(tmp_path / "slides.csv"), *other)
    assert refused.exit_code == 2
    assert "preds.csv is there already: pass --overwrite" in refused.stderr
    with (tmp_path / "preds.csv").open("a") as file:
        file.write("\n")
    assert run("--summary", str(tmp_path / "slides.csv")).exit_code == 2
    assert not (tmp_path / "slides.csv").exists()


def test_what_cannot_be_made_is_said_before_the_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "study").rglob("tile_x*"):
        path.rename(path.with_name(path.name.replace("_x", "-").replace("_y0", "")))
    refused = run("--geojson", str(tmp_path / "objects"))
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-1] == (
        "error: --geojson: nothing says where tiles lie on their slides: name a pattern of their names, or a CSV file, "
        "with --coords"
    )
    assert run("--geojson", str(tmp_path / "objects"), "--dry-run").exit_code == 2
    monkeypatch.setitem(sys.modules, "jinja2", None)
    refused = run("--report", str(tmp_path / "report.html"))
    assert (refused.exit_code, refused.stderr) == (1, "error: a page needs jinja2: pip install '.[report]'\n")
    refused = run("--report", str(tmp_path / "none" / "report.html"))
    assert refused.exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"study", ".preds.csv.lock"}


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
