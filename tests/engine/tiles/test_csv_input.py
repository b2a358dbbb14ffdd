"""A CSV file from a spreadsheet or a script is read rightly, or refused by a line that says where and what to do."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cervix_engine.errors import UsageError
from cervix_engine.tiles.csv_input import read_csv, whole_number

ROWS = [(2, {"path": "a.png", "label": "x"}), (3, {"path": "b, c.png", "label": "y"})]
PLAIN = 'path,label\na.png,x\n"b, c.png",y\n'


def read(folder: Path, content: str | bytes, **options: object) -> list[tuple[int, dict[str, str]]]:
    path = folder / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_csv(path, ("path", "label"), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.removesuffix("\n"),
        PLAIN.replace("path,label", " path ,label\t"),
        b"\xef\xbb\xbf" + PLAIN.replace("path,label", '"path","label"').encode(),
    ],
    ids=["plain", "mark", "Windows", "old Mac", "no last line end", "spaces around names", "mark before a quote"],
)
def test_what_is_read(tmp_path: Path, content: str | bytes) -> None:
    assert read(tmp_path, content) == ROWS


def test_blank_lines_count_as_lines_and_not_as_rows(tmp_path: Path) -> None:
    assert read(tmp_path, "\npath,label\n\na.png,x\n\n\n") == [(4, ROWS[0][1])]


def test_a_row_over_several_lines_is_named_by_its_first(tmp_path: Path) -> None:
    rows = read(tmp_path, 'path,label\n"a\r\nb",x\nc,y\n')
    assert rows == [(2, {"path": "a\r\nb", "label": "x"}), (4, {"path": "c", "label": "y"})]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "labels.csv is empty"),
        ("\ufeff\n\n", "labels.csv is empty"),
        ("path;label\na.png;x\n", "line 1: columns are separated by semicolons: save the file with commas"),
        ('"path";"label"\n"a.png";"x"\n', "line 1: columns are separated by semicolons"),
        ("path\tlabel\na.png\tx\n", "line 1: columns are separated by tabs"),
        ("sep=,\npath,label\n", "line 1: sep=, is for spreadsheets: delete this line"),
        ("\r\n\nSEP=;\npath;label\n", "line 3: SEP=; is for spreadsheets: delete this line"),
        ("\npath;label\n", "line 2: columns are separated by semicolons"),
        ("\n\nname,label\n", "line 3: no column path"),
        ("\npath,path,label\n", "line 2: column 'path' twice"),
        ("name,label\na.png,x\n", "line 1: no column path: found name, label; expected path,label"),
        (f"{'x' * 999},label\n", f"found {'x' * 200}…; expected"),
        ("path,label,label\na.png,x,y\n", "line 1: column 'label' twice"),
        ("path,label\na.png\n", "line 2: 1 of 2 cells that the header has; complete the row"),
        ("path,label\na.png,x\nb, c.png,y\n", "line 3: 3 of 2 cells that the header has"),
        ("path,label\n,x\n", "line 2: no path"),
        ("path,label\na.png,x\nb.png,x\na.png,y\n", "line 4: 'a.png' is already in line 2: keep one of the two"),
        ('path,label\na.png,x\n"b.png,y\nc.png,z\n', "line 3: quotation marks do not match (unexpected end of data)"),
        (
            'path,label\na.png,x\n"b.png,y\n' + "c.png,z\n" * 99_999,
            "line 3: quotation marks do not match (field larger",
        ),
        ('path,label\n"a"b.png,x\n', "line 2: quotation marks do not match"),
        ("path,label\na.png,x\nb\0.png,y\n", "line 3: bytes that are not text in UTF-8"),
        (
            "path,label\nü.png,x\n".encode("latin-1"),
            "line 2: bytes that are not text in UTF-8: save the file as CSV UTF-8",
        ),
        ("path,label\na.png,x\n".encode("utf-16"), "line 1: bytes that are not text in UTF-8"),
        ("path,label\na.png,x\n".encode("utf-16-le"), "line 1: bytes that are not text in UTF-8"),
        ("x" * 2_000_000, "line 1: longer than 1,048,576 characters: is this a CSV file?"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, content)
    assert words in str(caught.value)
    assert str(tmp_path / "labels.csv") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*Is a directory"):
        list(read_csv(tmp_path, ("path",)))
    with pytest.raises(UsageError, match=r"cannot read .*No such file"):
        list(read_csv(tmp_path / "none.csv", ("path",)))


def test_an_unknown_column_is_refused_where_it_could_be_a_misspelt_one(tmp_path: Path) -> None:
    content = "path,label,grup\na.png,x,1\n"
    assert read(tmp_path, content)[0][1]["grup"] == "1"
    with pytest.raises(UsageError, match=r"unknown column 'grup': expected path,label\[,group\]"):
        read(tmp_path, content, optional=("group",), ignored=("sha256",))


def test_names_of_files_may_hold_any_bytes(tmp_path: Path) -> None:
    rows = read(tmp_path, b"path,label\n\xff.png,x\n", any_bytes=True)
    assert os.fsencode(rows[0][1]["path"]) == b"\xff.png"


def test_a_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("path,label\n")
        file.writelines(f"a,{'x' * 50_000}\n" for _ in range(400))
    tracemalloc.start()
    try:
        # Every row is its own tile here, or the reader would hold their names and lines as it must.
        with pytest.raises(UsageError, match="line 3: 'a' is already in line 2"):
            list(read_csv(path, ("path", "label")))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("cell", "number"),
    [("87", 87), ("87.0", 87), (" 87.00 ", 87), ("0", 0), ("100000.", 100_000), (str(2**63 - 1), 2**63 - 1)],
)
def test_whole_numbers(cell: str, number: int) -> None:
    assert whole_number(cell) == number


@pytest.mark.parametrize("cell", ["", "87.5", "-1", "1e3", "nan", "8 7", "0x1", "1_000", ".0"])
def test_what_is_no_whole_number(cell: str) -> None:
    with pytest.raises(ValueError, match="is no number of pixels"):
        whole_number(cell)


@pytest.mark.parametrize("cell", [str(2**63), "9" * 20, f"{2**63}.0", "9" * 5000])
def test_a_number_that_no_table_holds_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match=f"^{cell[:19]}.* is no number of pixels: {2**63 - 1} is the most") as caught:
        whole_number(cell)
    assert len(str(caught.value)) < 200


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200) | st.text(alphabet='path,label\n\r";\t\0é', max_size=60).map(str.encode))
def test_any_file_is_rows_or_is_refused(tmp_path: Path, content: bytes) -> None:
    try:
        rows = read(tmp_path, content)
    except UsageError:
        return
    assert all(row["path"] for _, row in rows)
