"""A folder of Parquet files: its rows are those of its files, in the manifest's order; no other file is overlooked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.errors import OutputError, UsageError
from cervix_engine.table.formats import csv_text, is_folder, open_cells, table_exists, table_sha256
from cervix_engine.table.parquet.file import parquet_of_csv, read_parquet, write_parquet
from cervix_engine.table.parquet.folder import MANIFEST, ListedFile, Manifest, altered_files

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install '.[report]'")

HEADER = ["path", "slide_id", "width", "confidence", "prob_a", "status", "error"]
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))  # names and errors hold no others
CELLS = st.tuples(
    TEXT.filter(bool),
    st.sampled_from(["s", "NA", "null", "nan", "true", "1", "2026-01-01", ""]),
    st.one_of(st.just(""), st.integers(0, 10**6).map(str)),
    st.one_of(st.just(""), st.integers(0, 10**6).map(lambda millionths: f"{millionths / 1e6:.6f}")),
    st.one_of(st.just(""), st.floats(0, 1).map("{:.6f}".format)),
    st.sampled_from(["ok", "failed"]),
    TEXT,
).map(list)


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(CELLS, min_size=1, max_size=5))
def test_lines_of_a_csv_are_the_cells_of_the_plain_way(
    rows: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("both")
    lines = "".join(map(csv_text, rows)).encode()
    parquet_of_csv(folder / "fast.parquet", HEADER, lines)
    write_parquet(folder / "plain.parquet", HEADER, iter(rows))
    fast, plain = (list(read_parquet(folder / f"{name}.parquet")) for name in ("fast", "plain"))
    assert fast == plain
    assert [cells for _, cells in fast[1:]] == rows


def test_rows_of_another_header_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written as Parquet"):
        parquet_of_csv(tmp_path / "x.parquet", HEADER, b"a,b\n")
    with pytest.raises(OutputError, match="cannot be written as Parquet"):
        parquet_of_csv(tmp_path / "x.parquet", HEADER, b"a,s,wide,0.5,0.5,ok,\n")


def row(number: int) -> list[str]:
    return [f"t{number}.png", "s", "32", "0.500000", "0.500000", "ok", ""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five rows in files of two."""
    folder = tmp_path / "preds"
    folder.mkdir()
    files = []
    for number, numbers in enumerate(([0, 1], [2, 3], [4])):
        path = folder / f"part-{number:05d}.parquet"
        write_parquet(path, HEADER, map(row, numbers))
        files.append(ListedFile(path.name, len(numbers), table_sha256(path)))
    Manifest(tuple(HEADER), tuple(files), {"root": "x"}).save(folder)
    return folder


def test_the_rows_of_all_files(folder: Path) -> None:
    assert list(open_cells(folder)) == [HEADER, *map(row, range(5))]
    assert Manifest.load(folder).rows == 5
    assert list(altered_files(folder)) == []


def test_pyarrow_reads_the_folder_as_one_data_set(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(folder).column("path").to_pylist() == [f"t{number}.png" for number in range(5)]


def test_a_file_that_is_missing_altered_or_foreign(folder: Path) -> None:
    whole = table_sha256(folder)
    first, second, third = sorted(folder.glob("*.parquet"))
    data = second.read_bytes()
    second.write_bytes(data[:-1] + b"?")
    assert list(altered_files(folder)) == [(second.name, "it is not as the run wrote it")]
    assert table_sha256(folder) != whole
    second.write_bytes(data)
    (folder / "more.parquet").write_bytes(first.read_bytes())
    assert list(altered_files(folder)) == [("more.parquet", "the manifest does not list it")]
    assert table_sha256(folder) != whole
    (folder / "more.parquet").unlink()
    assert table_sha256(folder) == whole
    third.unlink()
    assert list(altered_files(folder)) == [(third.name, "it is not there")]
    assert table_sha256(folder) != whole
    with pytest.raises(OSError, match=third.name):
        list(open_cells(folder))


def test_a_file_in_anothers_place_is_never_read_as_the_table(folder: Path) -> None:
    first, second, third = sorted(folder.glob("*.parquet"))
    third.write_bytes(first.read_bytes())
    with pytest.raises(UsageError, match=r"part-00002\.parquet has 2 rows, _manifest\.json says 1"):
        list(open_cells(folder))
    write_parquet(second, HEADER[:-1], iter([row(2)[:-1], row(3)[:-1]]))
    with pytest.raises(UsageError, match=r"part-00001\.parquet has other columns"):
        list(open_cells(folder))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "cervix/manifest/2"}'])
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(UsageError, match="no manifest of cervix-batch"):
        list(open_cells(folder))


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no table: it has no _manifest\.json"):
        list(open_cells(tmp_path))
    with pytest.raises(FileNotFoundError):
        list(open_cells(tmp_path / "nothing"))


@pytest.mark.parametrize(
    "file",
    [
        {"name": "../part-00000.parquet", "rows": 1, "sha256": ""},
        {"name": None, "rows": 1, "sha256": ""},
        {"name": "part-00000.parquet", "rows": "1", "sha256": ""},
        {"name": "part-00000.parquet", "rows": 1},
        5,
    ],
)
def test_a_manifest_never_leads_elsewhere(folder: Path, file: object) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**document, "files": [file]}))
    with pytest.raises(UsageError, match="no manifest of cervix-batch"):
        list(altered_files(folder))


def test_the_name_of_the_manifest_survives_a_power_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fspath(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    Manifest.load(folder).save(folder)
    assert synced == [os.fspath(folder / MANIFEST), os.fspath(folder)]


def test_which_names_are_folders(tmp_path: Path) -> None:
    assert is_folder(tmp_path / "preds")
    assert not is_folder(tmp_path / "preds.csv")
    with pytest.raises(UsageError, match="that of a folder has no dot"):
        is_folder(tmp_path / "preds.v2")
    (tmp_path / "preds.v2").mkdir()
    assert is_folder(tmp_path / "preds.v2")  # one that was renamed is read as ever
    assert not table_exists(tmp_path / "preds.v2")
    (tmp_path / "preds.csv").touch()
    assert table_exists(tmp_path / "preds.csv")
