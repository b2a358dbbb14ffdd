from __future__ import annotations

from pathlib import Path

import pytest

from cervix_engine.contract import SIPAKMED_CLASSES
from cervix_engine.errors import DatasetError
from cervix_train.data.dataset import LabelledTile
from cervix_train.data.manifest import read_manifest

NAMES = [item.name for item in SIPAKMED_CLASSES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiles").mkdir()
    for name in ("a.png", "b, c.png"):
        (tmp_path / "tiles" / name).touch()
    return tmp_path


def read(folder: Path, text: str, *, encoding: str = "utf-8") -> list[LabelledTile]:
    manifest = folder / "manifest.csv"
    manifest.write_text(text, encoding=encoding)
    return read_manifest(manifest, class_names=NAMES)


def test_all_columns(folder: Path) -> None:
    text = "label,path,split,group,width,height,sha256\n"
    text += 'cervix_dyk,tiles/a.png,val,g1,3,4,00\ncervix_koc,"tiles/b, c.png",,,3,4,00\n'
    assert read(folder, text) == [
        LabelledTile(Path("tiles/a.png"), "cervix_dyk", "g1", "val"),
        LabelledTile(Path("tiles/b, c.png"), "cervix_koc", None, None),
    ]


def test_only_the_required_columns_and_a_spreadsheets_byte_order_mark(folder: Path) -> None:
    text = "path,label\r\ntiles/a.png,cervix_dyk\r\n"
    assert read(folder, text, encoding="utf-8-sig") == [LabelledTile(Path("tiles/a.png"), "cervix_dyk")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("path,group\n", "no column label"),
        ("path,label\n", "lists no tiles"),
        ("path,label,grup\ntiles/a.png,cervix_dyk,1\n", "unknown column 'grup'"),
        ("path,label,label\ntiles/a.png,cervix_dyk,x\n", "line 1: column 'label' twice"),
        ("path,label\ntiles/none.png,cervix_dyk\n", "line 2: no such tile: tiles/none.png"),
        ("path,label\n/etc/passwd,cervix_dyk\n", "line 2: path '/etc/passwd' must be relative"),
        ("path,label\n../a.png,cervix_dyk\n", "line 2: path '../a.png' must be relative"),
        ("path,label\n,cervix_dyk\n", "line 2: no path"),
        ("path,label\ntiles,cervix_dyk\n", "line 2: no such tile: tiles"),
        ("path,label\ntiles/a.png,cat\n", "line 2: unknown class 'cat'"),
        ("path,label,split\ntiles/a.png,cervix_dyk,dev\n", "line 2: unknown split 'dev'"),
        ("path,label\ntiles/a.png\n", "line 2: 1 of 2 cells"),
        ("path,label\ntiles/a.png,cervix_dyk,x\n", "line 2: 3 of 2 cells"),
        (
            "path,label\ntiles/a.png,cervix_dyk\n./tiles//a.png,cervix_koc\n",
            "line 3: './tiles//a.png' is already in line 2",
        ),
        ('path,label\n"tiles/a.png,cervix_dyk\n', "line 2: quotation marks do not match"),
    ],
)
def test_what_is_refused_and_how_it_is_said(folder: Path, text: str, words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read(folder, text)
    assert words in str(caught.value)
    assert str(folder / "manifest.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(folder: Path) -> None:
    manifest = folder / "manifest.csv"
    manifest.write_bytes(b"path,label\n\xff\xfe,cervix_dyk\n")
    with pytest.raises(DatasetError, match="line 2: bytes that are not text in UTF-8"):
        read_manifest(manifest, class_names=NAMES)
