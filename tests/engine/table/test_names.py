"""A table's cell holds any file name: it comes back byte for byte, on one line, and no spreadsheet runs it."""

from __future__ import annotations

import csv
import io
import os
import random
import traceback
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.table.names import escape_name, unescape_name
from engine.run.stream.planted_steps import defect
from engine.run.support import draw_folder, drawn_tile, read_table

NASTY = (b"=", b"+", b"-", b"@", b"%", b"%41", b"\n", b'"', b",", b"\xff", b"\xc3\xa9", b"\xe2\x80\xa8", b"/")
PATHS = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from(NASTY)).map(b"".join),
).map(lambda raw: raw.replace(b"\0", b""))


@settings(max_examples=1000, deadline=None)
@given(raw=PATHS)
@example(raw=b"=cmd|' /C calc'!A0.png")
@example(raw=b"-1.png")
@example(raw=b"%2Fetc%0A.png")
@example(raw=b"\xc2\x85next line\xe2\x80\xa8.png")
@example(raw=b"\xed\xa0\x80surrogate.png")
@example(raw=b"\r\n.png")
def test_any_name_survives_a_table(raw: bytes) -> None:
    cell = escape_name(os.fsdecode(raw))
    assert os.fsencode(unescape_name(cell)) == raw

    cell.encode("utf-8")  # valid, without surrogates
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in cell)

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow([cell, "next"])
    assert text.getvalue().count("\n") == 1
    assert list(csv.reader(io.StringIO(text.getvalue(), newline=""))) == [[cell, "next"]]


@settings(max_examples=200, deadline=None)
@given(one=PATHS, other=PATHS)
def test_different_names_have_different_cells(one: bytes, other: bytes) -> None:
    assert (escape_name(os.fsdecode(one)) == escape_name(os.fsdecode(other))) == (one == other)


@pytest.mark.parametrize(
    ("raw", "cell"),
    [
        (b"slide a/tile_1.png", "slide a/tile_1.png"),
        ("zelle é.png".encode(), "zelle é.png"),
        (b"100%.png", "100%25.png"),
        (b"=1+1.png", "%3D1+1.png"),
        (b"a/=b.png", "a/=b.png"),
        (b"two\nlines.png", "two%0Alines.png"),
        (b"latin-\xe9.png", "latin-%E9.png"),
        (b"c1-\xc2\x9b.png", "c1-%C2%9B.png"),
    ],
)
def test_cells_are_readable(raw: bytes, cell: str) -> None:
    assert escape_name(os.fsdecode(raw)) == cell


# ---- many names, and real ones

LONGEST = 255
PIECES = (
    *NASTY[:-1],
    b" ",
    b".",
    b"\\",
    b"'",
    b"\t",
    b"\x7f",
    b"\xe2\x80\xae",
    b"\xf0\x9f\x94\xac",
    b"\xed\xb3\xbf",
    b"a",
)


def random_name(choose: random.Random) -> bytes:
    """A name that Linux can hold: any bytes but NUL and `/`, of 1 to 255; half of them of what is awkward."""
    length = LONGEST if choose.random() < 0.02 else choose.choice((1, 2, 3, 5, 8, 13, 21))
    if choose.random() < 0.5:
        name = b"".join(choose.choices(PIECES, k=length))[:length]
    else:
        name = choose.randbytes(length).replace(b"\0", b"\1").replace(b"/", b"\\")
    return b"_" if name in (b".", b"..") else name


def test_a_hundred_thousand_random_names_survive_a_table() -> None:
    choose = random.Random(20)
    names = [b"/".join(random_name(choose) for _ in range(choose.randint(1, 3))) for _ in range(100_000)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([escape_name(os.fsdecode(name)), "next"] for name in names)
    table = text.getvalue().encode("utf-8")
    assert table.count(b"\n") == len(names)
    rows = csv.reader(io.StringIO(table.decode("utf-8"), newline=""))
    assert [os.fsencode(unescape_name(cell)) for cell, _ in rows] == names


def test_a_thousand_random_names_of_real_files(bundle: Bundle, tmp_path: Path) -> None:
    choose = random.Random(21)
    root = os.fsencode(tmp_path / "study")
    os.mkdir(root)  # noqa: PTH102 - bytes
    Path(tmp_path / "one.png").write_bytes(drawn_tile(1))
    # Names that start with a dot are hidden files and so no tiles.
    names = {random_name(choose)[: LONGEST - 4].lstrip(b".") + b".png" for _ in range(1000)} - {b".png"}
    for name in names:
        os.link(os.fsencode(tmp_path / "one.png"), root + b"/" + name)
    out = tmp_path / "preds.csv"
    assert predict_folder(BatchConfig(tmp_path / "study", out, bundle.root)).failed == 0
    found = [os.fsencode(unescape_name(row["path"])) for row in read_table(out)]
    assert len(names) > 600
    assert found == sorted(names)


PLANTED = "Jane_Doe_1962-04-30"


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Good and bad tiles, and what is ignored, all in files and folders named after a patient."""
    root = draw_folder(tmp_path / "study" / PLANTED, 12)
    for number, data in enumerate((b"", b"no tile", drawn_tile(3)[:-40])):
        (root / f"{PLANTED} {number}.png").write_bytes(data)
    (root / f"{PLANTED}.txt").write_bytes(b"x")
    (root / f"{PLANTED}.tif").symlink_to(tmp_path / "nowhere.tif")
    return tmp_path / "study"


def run(planted: Path, bundle: Bundle, *options: str) -> str:
    """Everything that a run says: on both streams, and as a traceback where it does not end by itself."""
    out = planted.parent / "preds.csv"
    done = CliRunner().invoke(main, [str(planted), "--out", str(out), "--model", str(bundle.root), *options])
    return done.output + "".join(map(str, done.exc_info or ()))


def test_no_name_leaves_the_table(planted: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    said = run(planted, bundle, "--json")
    assert "15 tiles: 12 predicted, 3 failed" in said
    assert PLANTED not in said
    assert PLANTED not in caplog.text
    assert PLANTED in (planted.parent / "preds.csv").read_text()
    assert PLANTED not in (planted.parent / "preds.csv.run.json").read_text()


def test_no_name_is_said_when_a_run_is_refused_or_fails(
    planted: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scandir = os.scandir

    def denied(folder: str | bytes | int) -> object:
        # From Python 3.13 on, pathlib too lists folders by it: the run's own stay open.
        if not isinstance(folder, int) and Path(os.fsdecode(folder)).is_relative_to(planted):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    assert "more than --max-failures 0 allows" in (said := run(planted, bundle, "--max-failures", "0"))
    assert PLANTED not in said
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", denied)
        assert "cannot be listed" in (said := run(planted, bundle, "--no-resume"))
    assert PLANTED not in said + caplog.text


def test_no_name_is_in_the_traceback_of_a_defect(planted: Path, bundle: Bundle) -> None:
    out = planted.parent / "preds.csv"
    setup = RunSetup(steps=TileSteps(preprocess_into=defect))
    done = CliRunner().invoke(main, [str(planted), "--out", str(out), "--model", str(bundle.root)], obj=setup)
    assert isinstance(done.exception, ZeroDivisionError)
    told = "".join(traceback.format_exception(done.exception))
    assert "planted_steps.py" in told
    assert PLANTED not in told + done.output
