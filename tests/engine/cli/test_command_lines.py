"""Twenty wrong command lines, one clear line each; and options from a file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cervix_engine.cli import batch, compare, doctor, report, verify
from engine.table.tables import Tile, WriteTable

COMMANDS: dict[str, click.Command] = {
    "batch": batch.main,
    "compare": compare.main,
    "doctor": doctor.main,
    "report": report.main,
    "verify": verify.main,
}

WRONG_BATCH = [
    ("batch", "Missing argument 'TILES'"),
    ("batch {}", "Missing option '-o' / '--out'"),
    ("batch {}/none --out {}/t/o.csv", "no such folder"),
    ("batch {}/notes.doc --out {}/t/o.csv", "not a folder"),
    ("batch {}/tiles --out {}/o.xlsx", "a table's name ends in"),
    ("batch {}/tiles --out {}/tiles/o.csv", "among the tiles"),
    ("batch {}/tiles --out {}/tiles", "among the tiles"),
    ("batch {}/tiles --out {}/tiles/preds/", "among the tiles"),
    ("batch {}/tiles --out {}", "is a folder or special file"),
    ("batch {}/tiles --out {}/preds.v2/", "that of a folder has no dot"),
    ("batch {}/tiles --out {}/o.csv --ray-cpus 0", "x>=1"),
    ("batch {}/tiles --out {}/o.csv --ray-cpus 4", "name one with --ray"),
    ("batch {}/tiles --out {}/o.csv --batchsize 3", "--batch-size"),
    ("batch {}/tiles --out {}/o.csv -b 0", "1<=x<=4096"),
    ("batch {}/tiles --out {}/o.csv -b many", "not a valid integer"),
    ("batch {}/tiles --out {}/o.csv -j 1000", "1<=x<=256"),
    ("batch {}/tiles --out {}/o.csv --precision fp8", "'fp8' is not one of"),
    ("batch {}/tiles --out {}/o.csv --max-failures lots", "max-failures"),
    ("batch {}/tiles {}/more --out {}/o.csv", "unexpected extra argument"),
    ("batch {}/tiles --out", "requires an argument"),
    ("batch {}/tiles --out {}/o.csv --qualty", "--quality"),
    ("batch {}/tiles --out {}/o.csv --sumary {}/s.csv", "--summary"),
    ("batch {}/tiles --out {}/o.csv --summary {}/o.csv", "must all be different"),
    ("batch {}/tiles --out {}/o.csv --report {}/notes.txt", "--overwrite"),
    ("batch {}/tiles --out {}/o.csv --geojson {}/notes.txt", "no folder"),
    ("batch {}/tiles --out {}/o.csv --config {}/none.toml", "No such file"),
    ("batch {}/tiles --out s3://bucket/o.csv", "s3://bucket/o.csv is a URL, expected a file or folder of this machine"),
    ("batch {}/tiles --out {}/o.csv --model hf://a/b", "'--model': hf://a/b is a URL"),
    ("verify", "Missing argument 'TABLE'"),
    ("verify https://x.example/preds.csv", "https://x.example/preds.csv is a URL"),
    ("verify {}/preds.csv --tilse {}", "--tiles"),
]

WRONG = [
    ("report", "Missing argument 'TABLE'"),
    ("report {}/none.csv --out {}/r.html", "No such file"),
    ("report {}/preds.csv", "nothing to make"),
    ("report {}/preds.csv --ot {}/r.html", "--out"),
    ("report {}/preds.csv --summry {}/s.csv", "--summary"),
    ("report {}/preds.csv --out", "requires an argument"),
    ("report {}/preds.csv --out {}/r.html --top 9999", "0<=x<=200"),
    ("report {}/preds.csv --out {}/r.html --top many", "not a valid integer"),
    ("report {}/preds.csv {}/preds.csv --out {}/r.html", "unexpected extra argument"),
    ("report {}/notes.txt --out {}/r.html", "a table's name ends in"),
    ("report {}/other.csv --out {}/r.html", "expected a table of cervix-batch"),
    ("report {}/preds.csv --out {}/preds.csv", "must all be different"),
    ("report {}/preds.csv --out {}/r.html --coords {{x}}", "coordinates"),
    ("report {}/preds.csv --out {}/r.html --config {}/none.toml", "No such file"),
    ("report {}/preds.csv --out {}/r.html --config {}/other.csv", "no TOML"),
    ("compare {}/preds.csv", "Missing argument 'OLD'"),
    ("compare {}/preds.csv {}/preds.csv --lables {}/l.csv", "--labels"),
    ("compare {}/preds.csv {}/preds.csv --labels {}/none.csv", "No such file"),
    ("compare {}/preds.csv {}/preds.csv --out {}/notes.txt", "--overwrite"),
    ("doctor --modle x", "--model"),
    ("doctor {}/preds.csv", "unexpected extra argument"),
]


def _run(line: str, folder: Path) -> Result:
    name, *arguments = line.replace("{{", "\0").replace("{}", str(folder)).replace("\0", "{").replace("}}", "}").split()
    return CliRunner().invoke(COMMANDS[name], arguments, prog_name=f"cervix-{name}")


@pytest.mark.parametrize(("line", "message"), WRONG + WRONG_BATCH)
def test_a_wrong_command_line_is_one_clear_line(write_table: WriteTable, line: str, message: str) -> None:
    folder = write_table([Tile("a.png")]).parent
    (folder / "notes.txt").touch()
    (folder / "notes.doc").touch()
    (folder / "tiles").mkdir()
    (folder / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    done = _run(line, folder)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert isinstance(done.exception, SystemExit), "no traceback"
    assert done.stdout == ""


def test_there_are_twenty() -> None:
    assert len(WRONG) >= 20
    assert sum(line.startswith("batch") for line, _ in WRONG_BATCH) >= 20


def test_options_come_from_a_file_and_the_command_line_goes_first(write_table: WriteTable) -> None:
    folder = write_table([Tile("a.png")]).parent
    config = folder / "report.toml"
    config.write_text(f'out = "{folder}/r.html"\ntop = 3\noverwrite = true\n', encoding="utf-8")
    done = _run("report {}/preds.csv --config {}/report.toml --top 7 --dump-config", folder)
    assert done.exit_code == 0, done.output
    expected = {"out": f"{folder}/r.html", "top": 7, "overwrite": True, "heatmaps": False, "similar": False}
    assert tomllib.loads(done.stdout) == expected
    assert not (folder / "r.html").exists(), "dumping does nothing else"
    config.write_text(done.stdout, encoding="utf-8")
    again = _run("report {}/preds.csv --config {}/report.toml --dump-config", folder)
    assert again.stdout == done.stdout
    assert _run("report {}/preds.csv --config {}/report.toml", folder).exit_code == 0
    assert (folder / "r.html").exists()


@pytest.mark.parametrize(
    ("text", "message"), [("otu = 'x'", "Did you mean 'out'?"), ("out = [1]", "one value"), ("top = 'x'", "integer")]
)
def test_a_wrong_file_is_one_clear_line(write_table: WriteTable, text: str, message: str) -> None:
    folder = write_table([Tile("a.png")]).parent
    (folder / "c.toml").write_text(text, encoding="utf-8")
    done = _run("report {}/preds.csv --config {}/c.toml", folder)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_version_are_no_errors(name: str, tmp_path: Path) -> None:
    for option in ("--help", "--version"):
        done = _run(f"{name} {option}", tmp_path)
        assert (done.exit_code, done.stderr) == (0, "")
        assert f"cervix-{name}" in done.stdout


def test_a_file_of_options_may_begin_with_a_byte_order_mark(write_table: WriteTable, tmp_path: Path) -> None:
    write_table([Tile("a.png")])
    (tmp_path / "options.toml").write_text(f'out = "{tmp_path}/r.html"\n', encoding="utf-8-sig")
    done = _run("report {}/preds.csv --config {}/options.toml", tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "r.html").is_file()


def test_a_file_of_options_that_is_not_utf8_is_refused_with_its_line(write_table: WriteTable, tmp_path: Path) -> None:
    write_table([Tile("a.png")])
    (tmp_path / "options.toml").write_bytes(b'overwrite = true\nout = "\xfc.html"\n')
    done = _run("report {}/preds.csv --config {}/options.toml", tmp_path)
    assert done.exit_code == 2
    assert "options.toml, line 2: bytes that are not UTF-8: save the file as UTF-8" in done.stderr
