"""The tutorial's commands, run in order as they stand on the page, and what they leave."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a reader has typed all of it."""
    folder = tmp_path_factory.mktemp("tutorial")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CERVIX_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "".join(COMMANDS)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (folder / "said").write_text(done.stdout + done.stderr, encoding="utf-8")
    return folder


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_command_runs_as_written(folder: Path) -> None:
    said = (folder / "said").read_text(encoding="utf-8")
    assert said.count("\n+ ") + said.startswith("+ ") >= sum(block.count("\n") for block in COMMANDS)
    assert "90 tiles: 90 predicted, 0 failed" in said
    assert "90 of 90 labels match a tile in both tables" in said


@pytest.mark.slow
def test_what_is_shown_of_the_manifest_is_what_it_holds(folder: Path) -> None:
    shown = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    manifest = (folder / "labelled" / "manifest.csv").read_text(encoding="utf-8")
    assert [manifest.startswith(block) for block in shown] == [True]


@pytest.mark.slow
def test_the_model_has_learnt_and_the_tables_balance(folder: Path) -> None:
    labels = {row["path"]: row["label"] for row in _rows(folder / "slides" / "manifest.csv")}
    for name in ("preds.csv", "fp16.csv"):
        rows = _rows(folder / name)
        assert sorted(row["path"] for row in rows) == sorted(labels)
        # A guess is right on one tile in five.
        assert sum(row["pred"] == labels[row["path"]] for row in rows) > 45


@pytest.mark.slow
def test_each_slide_has_its_line_its_map_and_its_objects(folder: Path) -> None:
    names = {"slide_01", "slide_02", "slide_03"}
    assert {row["slide_id"] for row in _rows(folder / "slides.csv")} == names
    assert {path.stem for path in (folder / "qupath").glob("*.geojson")} == names
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in names)
