from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from cervix_engine.contract import SIPAKMED_CLASSES, TileClass
from cervix_engine.errors import DatasetError, UsageError
from cervix_train.data.dataset import Dataset, check_trainable, read_classes
from cervix_train.data.layouts import read_dataset

# Layouts are read from names alone, so these tiles need no pixels.
SIPAKMED_FOLDERS = {
    "im_Dyskeratotic": "cervix_dyk",
    "im_Koilocytotic": "cervix_koc",
    "im_Metaplastic": "cervix_mep",
    "im_Parabasal": "cervix_pab",
    "im_Superficial-Intermediate": "cervix_sfi",
}


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def listing(dataset: Dataset) -> list[tuple[str, str, str | None]]:
    return [(tile.path.as_posix(), tile.label, tile.split) for tile in dataset.tiles]


def test_kaggle_class_folders_in_byte_order_of_their_paths(tmp_path: Path) -> None:
    touch(tmp_path, "cervix_koc/b.jpg", "cervix_dyk/z.PNG", "cervix_dyk/a.tiff", "notes.txt", "cervix_dyk/read.me")
    dataset = read_dataset(tmp_path)
    assert listing(dataset) == [
        ("cervix_dyk/a.tiff", "cervix_dyk", None),
        ("cervix_dyk/z.PNG", "cervix_dyk", None),
        ("cervix_koc/b.jpg", "cervix_koc", None),
    ]
    assert [item.name for item in dataset.classes] == ["cervix_dyk", "cervix_koc"]


@pytest.mark.parametrize("nested", [False, True], ids=["published", "nested-as-on-kaggle"])
def test_sipakmed_takes_cropped_cells_and_not_whole_fields(tmp_path: Path, nested: bool) -> None:
    for folder in SIPAKMED_FOLDERS:
        inner = f"{folder}/{folder}" if nested else folder
        touch(tmp_path, f"{inner}/001.bmp", f"{inner}/CROPPED/001_01.bmp", f"{inner}/CROPPED/001_01_nuc.dat")
    dataset = read_dataset(tmp_path)
    assert {tile.path.parts[0]: tile.label for tile in dataset.tiles} == SIPAKMED_FOLDERS
    assert {tile.path.name for tile in dataset.tiles} == {"001_01.bmp"}
    assert dataset.classes == SIPAKMED_CLASSES


def test_split_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/cervix_dyk/1.png", "Validation/cervix_dyk/2.png", "test/cervix_koc/3.png")
    assert listing(read_dataset(tmp_path)) == [
        ("Validation/cervix_dyk/2.png", "cervix_dyk", "val"),
        ("test/cervix_koc/3.png", "cervix_koc", "test"),
        ("train/cervix_dyk/1.png", "cervix_dyk", "train"),
    ]


def test_a_manifest_is_found_in_its_folder_or_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "cervix_koc/b.png")
    (tmp_path / "manifest.csv").write_text("path,label\na.png,cervix_dyk\n")
    assert listing(read_dataset(tmp_path)) == [("a.png", "cervix_dyk", None)]
    assert read_dataset(tmp_path / "manifest.csv") == read_dataset(tmp_path)


def test_hidden_names_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "cervix_dyk/._a.png", "cervix_dyk/.thumbs/b.png", ".cache/c.png", "cervix_dyk/d.png")
    assert [name for name, _, _ in listing(read_dataset(tmp_path))] == ["cervix_dyk/d.png"]


TWO_CLASSES = ("train/cervix_dyk/1.png", "val/cervix_dyk/2.png", "test/cervix_dyk/3.png", "test/cervix_koc/4.png")


def read(root: Path, caplog: pytest.LogCaptureFixture, *, follow_links: bool = False) -> tuple[Dataset, list[str]]:
    """The data set, and what was said."""
    with caplog.at_level(logging.INFO, "cervix_train"):
        return read_dataset(root, follow_links=follow_links), caplog.messages


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (("cervix_dyk/1.png", "cervix_koc/2.png"), "one folder per class"),
        (TWO_CLASSES, "split folders, each with one folder per class"),
        (("cervix_dyk/train/1.png", "cervix_dyk/test/2.png"), "one folder per class, with split folders"),
        (("im_Dyskeratotic/im_Dyskeratotic/CROPPED/1.bmp",), "one folder per class, cells in CROPPED"),
    ],
)
def test_the_layout_is_told_in_words(tmp_path: Path, names: tuple[str, ...], layout: str) -> None:
    assert read_dataset(touch(tmp_path, *names)).layout == layout


def test_splits_within_class_folders_are_kept(tmp_path: Path) -> None:
    touch(tmp_path, *(f"cervix_dyk/{split}/{n}.png" for n, split in enumerate(("train", "valid", "test"))))
    touch(
        tmp_path, "im_Koilocytotic/im_Koilocytotic/Train/CROPPED/3.bmp", "im_Koilocytotic/im_Koilocytotic/Train/f.bmp"
    )
    assert listing(read_dataset(tmp_path)) == [
        ("cervix_dyk/test/2.png", "cervix_dyk", "test"),
        ("cervix_dyk/train/0.png", "cervix_dyk", "train"),
        ("cervix_dyk/valid/1.png", "cervix_dyk", "val"),
        ("im_Koilocytotic/im_Koilocytotic/Train/CROPPED/3.bmp", "cervix_koc", "train"),
    ]


def test_tiles_beside_split_folders_are_refused_by_name(tmp_path: Path) -> None:
    touch(tmp_path, *TWO_CLASSES, "unlabelled/5.png", "cervix_pab/6.png", "cervix_pab/7.png")
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has test/, train/, val/, and beside them tiles of no split: 2 in cervix_pab/, 1 in unlabelled/; "
        "put those into a split, or elsewhere"
    )


def test_folders_without_tiles_are_named_and_do_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, *TWO_CLASSES, "docs/readme.txt", "__MACOSX/train/cervix_dyk/._1.png", "__MACOSX/x/2.png")
    (tmp_path / "val/cervix_koc").mkdir()
    (tmp_path / "empty").mkdir()
    dataset, said = read(tmp_path, caplog)
    assert sorted(path for path, _, _ in listing(dataset)) == sorted(TWO_CLASSES)
    assert said == [
        "passed over: 1 with another suffix, 1 system folder",
        "no tiles are in docs/, empty/, val/cervix_koc/",
    ]


HERLEV = ("cervix_dyk/149-001.BMP", "cervix_dyk/149-001-d.bmp", "cervix_dyk/150-d.bmp", "cervix_koc/7.bmp")


@pytest.mark.parametrize(
    ("masks", "tiles"),
    [
        (HERLEV[1:2], (HERLEV[0], *HERLEV[2:])),
        (("cervix_dyk/a_mask.png", "cervix_dyk/mask_b.tif", "cervix_dyk/a.mask.png"), ("cervix_dyk/a.png",)),
        (("cervix_dyk/masks/a.png", "Masks/cervix_dyk/a.png"), ("cervix_dyk/images/a.png",)),
        (
            ("cervix_dyk/a_seg.png", "cervix_dyk/b-gt.tif"),
            ("cervix_dyk/a.png", "cervix_dyk/b.png", "cervix_dyk/c_gt.png"),
        ),
        (("train/cervix_dyk/a-d.bmp", "masks/a.bmp"), ("train/cervix_dyk/a.bmp", "test/cervix_dyk/unmasked.bmp")),
    ],
)
def test_masks_are_left_out_and_named(
    tmp_path: Path, masks: tuple[str, ...], tiles: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    dataset, said = read(touch(tmp_path, *masks, *tiles), caplog)
    assert sorted(path for path, _, _ in listing(dataset)) == sorted(tiles)
    words = "1 mask is" if len(masks) == 1 else f"{len(masks)} masks are"
    assert said == [f"{words} left out, such as {min(masks)}"]


def test_a_class_called_mask_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "mask/a.png", "nilm/b.png")
    classes = (TileClass("mask", "Mask", "normal"), TileClass("nilm", "Negative", "normal"))
    assert len(read_dataset(tmp_path, classes=classes).tiles) == 2


def test_listed_masks_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.bmp", "a-d.bmp")
    (tmp_path / "manifest.csv").write_text("path,label\na.bmp,cervix_dyk\na-d.bmp,cervix_dyk\n")
    dataset, said = read(tmp_path, caplog)
    assert len(dataset.tiles) == 2, "the list has the last word"
    assert said == ["1 tile of the manifest looks like a mask by its name, such as a-d.bmp"]


def test_tiles_of_no_class_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/cervix_dyk/1.png", "test/cervix_dyk/2.png", "overview.png", "train/montage.png")
    dataset, said = read(tmp_path, caplog)
    assert len(dataset.tiles) == 2
    assert said == ["2 tiles are left out, which lie in no class's folder, such as overview.png"]


def test_links_are_followed_as_a_batch_follows_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = touch(tmp_path / "blobs", "koc/1.png", "2.png")
    root = touch(tmp_path / "data", "cervix_dyk/0.png")
    (root / "cervix_koc").symlink_to(elsewhere / "koc")
    (root / "cervix_dyk/2.png").symlink_to(elsewhere / "2.png")
    (root / "cervix_dyk/again.png").symlink_to(root / "cervix_dyk/0.png")
    inside = ["cervix_dyk/0.png", "cervix_dyk/again.png"]
    dataset, said = read(root, caplog)
    assert [path for path, _, _ in listing(dataset)] == inside
    assert said == ["passed over: 2 links that lead elsewhere; --follow-links follows links"]
    caplog.clear()
    dataset, said = read(root, caplog, follow_links=True)
    assert [path for path, _, _ in listing(dataset)] == sorted([*inside, "cervix_dyk/2.png", "cervix_koc/1.png"])
    assert said == []


def test_classes_of_ones_own(tmp_path: Path) -> None:
    touch(tmp_path, "nilm/a.png", "High grade/b.png")
    classes = (TileClass("hsil", "High grade", "abnormal"), TileClass("nilm", "Negative", "normal"))
    dataset = read_dataset(tmp_path, classes=classes)
    assert [tile.label for tile in dataset.tiles] == ["hsil", "nilm"]
    assert dataset.classes == classes


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no tiles"),
        (["cervix_dyk/readme.txt"], "no tiles, only 1 with another suffix"),
        (["cervix_dyk/masks/a.png"], "no tiles"),
        (["a.png", "b.png"], "no folder per class"),
        (["cervix_dyk/a.png", "other/b.png"], "unknown class 'other'"),
        (["train/cervix_dyk/a.png", "test/other/b.png"], "unknown class 'other'"),
    ],
)
def test_folders_that_are_no_dataset(tmp_path: Path, names: list[str], words: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DatasetError, match=words) as caught:
        read_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder or manifest"):
        read_dataset(tmp_path / "nowhere")


def test_an_unknown_class_folder_without_tiles_does_not_matter(tmp_path: Path) -> None:
    touch(tmp_path, "docs/readme.txt", "cervix_dyk/a.png")
    assert len(read_dataset(tmp_path).tiles) == 1


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cervix_dyk/a.png", "cervix_dyk/b.png"], "one class only"),
        (["cervix_dyk/a.png", "cervix_dyk/b.png", "cervix_koc/c.png"], "class cervix_koc has one tile only"),
    ],
)
def test_what_nothing_can_be_learnt_from(tmp_path: Path, names: list[str], words: str) -> None:
    dataset = read_dataset(touch(tmp_path, *names))
    with pytest.raises(DatasetError, match=words):
        check_trainable(dataset)


def test_read_classes_keeps_order_and_reads_a_contracts_form(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    items = [
        {"name": "hsil", "display_name": "High grade", "category": "abnormal"},
        {"name": "nilm", "display_name": "Negative", "category": "normal"},
    ]
    path.write_text(json.dumps({"classes": items, "input_size": [1, 1]}))
    assert [item.name for item in read_classes(path)] == ["hsil", "nilm"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"classes": ["a"]}', '{"classes": [{"name": "a b", "display_name": "x", "category": "normal"}]}'],
)
def test_read_classes_refuses_other_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not a list of classes"):
        read_classes(path)


@pytest.mark.data
def test_the_real_folders(data_root: Path) -> None:
    dataset = read_dataset(data_root / "tiles")
    assert dataset.classes == SIPAKMED_CLASSES
    assert len(dataset.tiles) == len(read_dataset(data_root).tiles)
