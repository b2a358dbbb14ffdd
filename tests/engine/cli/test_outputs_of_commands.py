"""Commands write over nothing that they read, and over nothing that no command wrote, whatever `--overwrite` says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli import batch, card, compare, merge, report
from engine.run.support import draw_folder
from engine.table.tables import Tile, WriteTable

COMMANDS: Mapping[str, click.Command] = {
    "batch": batch.main,
    "card": card.main,
    "compare": compare.main,
    "merge": merge.main,
    "report": report.main,
}


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _run(line: str, study: Path, bundle: Path) -> Result:
    words = [word.replace("{}", str(study)).replace("@", str(bundle)) for word in line.split(" ")]
    return CliRunner().invoke(COMMANDS[words[0]], words[1:], prog_name=f"cervix-{words[0]}")


@pytest.fixture
def study(write_table: WriteTable) -> Path:
    """Two tables, tiles, a table's record, labels, what a person keeps, and a pipe."""
    folder = write_table([Tile("a/x0_y0.png", "a")]).parent
    write_table([Tile("a/x0_y0.png", "a")], "old.csv")
    (folder / "preds.csv.run.json").write_text("{}")
    (folder / "labels.csv").write_text("path,label\na/x0_y0.png,cervix_mep\n")
    (folder / "coords.csv").write_text("path,minx,miny\na/x0_y0.png,0,0\n")
    draw_folder(folder / "deep/tiles", 4)
    (folder / "kept").mkdir()
    (folder / "kept/thesis.tex").write_text("years of work")
    (folder / "link").symlink_to(folder / "kept")
    (folder / "notes.md").write_text("not of any command")
    os.mkfifo(folder / "pipe")
    return folder


BATCH = "batch {}/deep/tiles --out {}/new.csv --model @ --overwrite"
REPORT = "report {}/preds.csv --tiles {}/deep/tiles --overwrite"
COMPARE = "compare {}/preds.csv {}/old.csv --overwrite"

REFUSED = [
    (f"{command} --geojson {{}}/{folder}", words)
    for command in (BATCH, REPORT)
    for folder, words in (
        ("deep/tiles", "among the tiles"),
        ("deep", "holds"),
        ("deep/tiles/geo", "among the tiles"),
        ("deep/tiles/slide_a", "among the tiles"),
        ("kept", "thesis.tex"),
        ("link", "is a link"),
        ("..", "names no place of its own"),
        ("pipe", "is no folder"),
    )
]
REFUSED += [
    (f"{command} {option} {{}}/pipe", "is no regular file")
    for command, options in (
        (BATCH, ("--summary", "--report")),
        (REPORT, ("--summary", "--out")),
        (COMPARE, ("--out",)),
        ("card @ --overwrite", ("--out",)),
    )
    for option in options
]
REFUSED += [
    (f"{command} {option} {name}", "names no place of its own")
    for command, option in ((REPORT, "--geojson"), (REPORT, "--out"), (COMPARE, "--out"), ("card @", "--out"))
    for name in ("", ".", "/")
]
REFUSED += [
    (f"{COMPARE} --out {{}}/preds.csv", "is read, too"),
    (f"{COMPARE} --out {{}}/old.csv", "is read, too"),
    (f"{COMPARE} --out {{}}/deep/../old.csv", "is read, too"),
    (f"{COMPARE} --labels {{}}/labels.csv --out {{}}/labels.csv", "is read, too"),
    (f"{COMPARE} --out {{}}/preds.csv.run.json", "is read, too"),
    (f"{REPORT} --out {{}}/preds.csv.run.json", "is read, too"),
    (f"{REPORT} --summary {{}}/deep/tiles/slide_a/tile_00001.jpg", "among the tiles"),
    (f"{REPORT} --coords {{}}/coords.csv --out {{}}/coords.csv", "is read, too"),
    (f"{REPORT} --model @ --out @/contract.json", "would lie in"),
    (f"{REPORT} --model @ --geojson @/golden", "would lie in"),
    ("card @ --out @/model.onnx --overwrite", "would lie in"),
    (f"{BATCH} --coords {{}}/coords.csv --summary {{}}/coords.csv", "is read, too"),
    (f"{BATCH} --report @/contract.json", "would lie in"),
    (f"{BATCH} --log-file {{}}/notes.md", "no log"),
    ("batch {}/deep/tiles --out {}/coords.csv --coords {}/coords.csv --model @ --overwrite", "is read, too"),
    ("batch {}/deep/tiles --out @/preds.csv --model @", "would lie in"),
    (f"{BATCH} --whole-slides --preview {{}}/deep/tiles/pictures", "among the slides"),
    (f"{BATCH} --whole-slides --preview {{}}/deep/tiles", "among the slides"),
    (f"{BATCH} --whole-slides --preview {{}}/notes.md", "is no folder"),
    ("merge {}/preds.csv {}/old.csv {}/preds.csv --overwrite", "is read, too"),
]


@pytest.mark.parametrize(("line", "words"), REFUSED)
def test_it_is_refused_in_one_line_and_nothing_is_touched(study: Path, bundle: Bundle, line: str, words: str) -> None:
    before, of_bundle = _contents(study), _contents(bundle.root)
    done = _run(line, study, bundle.root)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert (_contents(study), _contents(bundle.root)) == (before, of_bundle)
    assert (study / "pipe").is_fifo()


def test_what_an_earlier_call_wrote_is_replaced(study: Path) -> None:
    before = {name: data for name, data in _contents(study).items() if not name.startswith("made")}
    (study / "made").mkdir()
    command = "report {}/preds.csv --geojson {}/made/geo --summary {}/made/slides.csv --out {}/made/page.html"
    bundle = study / "none"
    assert _run(command, study, bundle).exit_code == 0
    first = _contents(study / "made")
    assert _run(command, study, bundle).exit_code == 2
    assert _run(f"{command} --overwrite", study, bundle).exit_code == 0
    assert _contents(study / "made").keys() == first.keys() == {"geo/a.geojson", "slides.csv", "page.html"}
    assert {name: data for name, data in _contents(study).items() if not name.startswith("made")} == before
