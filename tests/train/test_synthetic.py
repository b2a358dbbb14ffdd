from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import OutputExistsError
from cervix_engine.tiles.preprocess import decode
from cervix_train.synthetic import KINDS, draw_tile, main, write_drawn

NAMES = [item.name for item in SIPAKMED_CLASSES]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_class_of_the_contract_has_a_kind() -> None:
    assert list(KINDS) == NAMES


@pytest.mark.parametrize("label", NAMES)
def test_a_tile_is_rgb_of_the_promised_size(label: str) -> None:
    sizes = set()
    for cell in range(8):
        pixels = draw_tile(label, field=1, cell=cell, seed=3)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert min(pixels.shape[:2]) >= 70
        assert max(pixels.shape[:2]) <= 160
        sizes.add(pixels.shape)
    assert len(sizes) > 1


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_drawn(tmp_path / name, tiles=10, seed=seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert not set(a.values()) & set(c.values())


def test_more_tiles_leave_the_first_as_they_were(tmp_path: Path) -> None:
    write_drawn(tmp_path / "few", tiles=7)
    write_drawn(tmp_path / "many", tiles=12)
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    assert len(few) == 7
    assert len(set(many.values())) == 12
    assert few.items() <= many.items()


def test_files_hold_the_drawn_pixels(tmp_path: Path, contract: ModelContract) -> None:
    write_drawn(tmp_path / "out", tiles=5, seed=2)
    data = (tmp_path / "out/cervix_koc/001_01.png").read_bytes()
    assert np.array_equal(decode(data, contract=contract), draw_tile("cervix_koc", field=1, cell=1, seed=2))


def test_flat_names_say_nothing_and_the_manifest_says_all(tmp_path: Path) -> None:
    write_drawn(tmp_path / "flat", tiles=11, flat=True)
    rows = list(csv.DictReader((tmp_path / "flat/manifest.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == [NAMES[index % 5] for index in range(11)]
    assert all((tmp_path / "flat" / row["path"]).is_file() for row in rows)
    assert not any(name in row["path"] for row in rows for name in NAMES)
    assert rows[0]["group"] == rows[5]["group"] != rows[10]["group"]


def test_classes_differ_in_what_they_are_drawn_to_differ_in() -> None:
    """Dyskeratotic cytoplasm is the reddest, parabasal nuclei take most of the tile, superficial ones least."""

    def mean(label: str, measure: str) -> float:
        values = []
        for field in range(12):
            pixels = draw_tile(label, field=field, cell=1, seed=0).astype(int)
            red_over_blue = (pixels[..., 0] - pixels[..., 2]).max() / 255
            dark = (cv2.GaussianBlur(pixels.mean(axis=2).astype(np.float32), (0, 0), 2) < 110).mean()
            values.append(red_over_blue if measure == "red" else dark)
        return float(np.mean(values))

    red = {label: mean(label, "red") for label in NAMES}
    dark = {label: mean(label, "dark") for label in NAMES}
    assert max(red, key=lambda label: red[label]) == "cervix_dyk"
    assert max(dark, key=lambda label: dark[label]) == "cervix_pab"
    assert min(dark, key=lambda label: dark[label]) == "cervix_sfi"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        write_drawn(tmp_path, tiles=5)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path / "out"), "--tiles", "6", "--seed", "4"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES
    again = CliRunner().invoke(main, [str(tmp_path / "out")])
    assert again.exit_code == 2
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1
