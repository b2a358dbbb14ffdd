from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import OutputExistsError
from cervix_engine.tiles.preprocess import decode
from cervix_train.synthetic import KINDS, draw_tile, write_drawn, write_slides
from cervix_train.synthetic.__main__ import main

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


def test_slides_have_places_groups_and_a_stain_of_their_own(tmp_path: Path) -> None:
    write_slides(tmp_path / "a", tiles=41, slides=3, seed=1)
    rows = list(csv.DictReader((tmp_path / "a/manifest.csv").read_text().splitlines()))
    assert Counter(row["group"] for row in rows) == {"slide_01": 14, "slide_02": 14, "slide_03": 13}
    assert {row["path"].split("/")[0] for row in rows if row["group"] == "slide_02"} == {"slide_02"}
    named = [re.fullmatch(r"(slide_\d\d)/x(\d+)_y(\d+)\.png", row["path"]) for row in rows]
    places = {match.groups() for match in named if match}
    assert len(places) == 41, "every tile has a place of its own"
    assert all(int(x) % 160 == int(y) % 160 == 0 for _, x, y in places)
    abnormal = Counter(row["group"] for row in rows if row["label"] in ("cervix_dyk", "cervix_koc"))
    assert abnormal == {"slide_01": 1, "slide_02": 10, "slide_03": 1}
    write_slides(tmp_path / "b", tiles=41, slides=3, seed=1)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_two_ways_to_lay_tiles_out_exclude_each_other(tmp_path: Path) -> None:
    for options, message in (
        (["--flat", "--slides", "2"], "choose one"),
        (["--slides", "201"], "--tiles 200 are fewer"),
    ):
        done = CliRunner().invoke(main, [str(tmp_path / "out"), *options])
        assert (done.exit_code, message in done.stderr, (tmp_path / "out").exists()) == (2, True, False)
