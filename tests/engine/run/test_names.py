"""A table's cell holds any file name: it comes back byte for byte, on one line, and no spreadsheet runs it."""

from __future__ import annotations

import csv
import io
import os
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cervix_engine.output.names import escape_name, unescape_name

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
