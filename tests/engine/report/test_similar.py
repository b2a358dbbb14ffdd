"""Similar tiles: a training tile finds itself first, distances have a unit, and what is missing is one line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.calibration_tiles import write_calibration_tiles
from cervix_engine.cli.report import main
from cervix_engine.errors import ContractError, UsageError
from cervix_engine.report.feature_network import FeatureNetwork
from cervix_engine.report.similar import Neighbour, TrainingTiles, carried_tiles
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.tiles.preprocess import decode
from cervix_engine.values import Pixels
from engine.run.support import CLASS_NAMES, CONTRACT, choose_fake, drawn_tile, make_bundle, make_fake_bundle

pytest.importorskip("onnx", reason="needs onnx: pip install '.[report]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[cpu]'")

CARRIED, LEARNT = 20, 30


def source(number: int) -> str:
    return f"tiles/{number:02d}.png"


def label(number: int) -> str:
    return CLASS_NAMES[number % len(CLASS_NAMES)]


def carrying(bundle: Bundle, *, split: bool = True) -> Bundle:
    """The bundle with some of its training tiles in it, as `cervix-train` leaves it."""
    tiles = {source(number): drawn_tile(number) for number in range(CARRIED)}
    write_calibration_tiles(bundle.root, tiles, seed=0)
    if split:
        rows = [f"{source(number)},{label(number)},g{number},train," for number in range(LEARNT)]
        others = ["tiles/x.png,cervix_dyk,h,test,", "tiles/y.png,cervix_dyk,h,train,truncated"]
        (bundle.root / "training").mkdir()
        text = "\n".join(["path,label,group,split,error", *rows, *others])
        (bundle.root / "training" / "split.csv").write_text(text + "\n", encoding="utf-8")
    return seal(bundle.root)


@pytest.fixture(scope="module")
def carrier(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return carrying(make_bundle(tmp_path_factory.mktemp("similar") / "model"))


@pytest.fixture(scope="module")
def network(carrier: Bundle) -> FeatureNetwork:
    return FeatureNetwork(carrier)


@pytest.fixture(scope="module")
def training(carrier: Bundle, network: FeatureNetwork) -> TrainingTiles:
    return TrainingTiles(carrier, network)


def neighbours(training: TrainingTiles, network: FeatureNetwork, tile: Pixels) -> Sequence[Neighbour]:
    (features,) = network.features([tile])
    return training.nearest(features)


@pytest.mark.parametrize("number", [0, 7, 19])
def test_a_training_tile_finds_itself_first(training: TrainingTiles, network: FeatureNetwork, number: int) -> None:
    found = neighbours(training, network, decode(drawn_tile(number), contract=CONTRACT))
    assert (found[0].source, found[0].label) == (source(number), label(number))
    assert found[0].distance < 0.01
    assert [near.distance for near in found] == sorted(near.distance for near in found)
    assert len({near.source for near in found}) == 3
    assert all(near.picture.startswith("data:image/jpeg;base64,") for near in found)


@pytest.mark.parametrize("number", [3, 12])
def test_a_second_photograph_finds_it_first_too(training: TrainingTiles, network: FeatureNetwork, number: int) -> None:
    tile = decode(drawn_tile(number), contract=CONTRACT)
    enlarged = cv2.resize(tile, None, fx=1.4, fy=1.4, interpolation=cv2.INTER_CUBIC)
    again = np.asarray(cv2.convertScaleAbs(enlarged, alpha=0.99, beta=2), np.uint8)
    found = neighbours(training, network, again)
    assert found[0].source == source(number)
    assert 0 < found[0].distance < 1


def test_distances_are_in_units_of_what_training_tiles_are_from_their_own_nearest(
    training: TrainingTiles, network: FeatureNetwork
) -> None:
    tiles = [decode(drawn_tile(number), contract=CONTRACT) for number in range(CARRIED)]
    of_others = [neighbours(training, network, tile)[1].distance for tile in tiles]
    assert np.median(of_others) == pytest.approx(1, abs=0.01)
    assert (training.carried, training.learnt) == (CARRIED, LEARNT)


def test_labels_are_unknown_where_the_bundle_does_not_tell_them(tmp_path: Path) -> None:
    bundle = carrying(make_bundle(tmp_path / "model"), split=False)
    network = FeatureNetwork(bundle)
    training = TrainingTiles(bundle, network)
    assert training.learnt is None
    assert {near.label for near in neighbours(training, network, np.zeros((9, 9, 3), np.uint8))} == {""}


def test_a_bundle_without_training_tiles_is_refused_in_a_line(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"^--similar: \S+ carries no training tiles: [^\n]*--calibration$"):
        carried_tiles(bundle)


def test_a_malformed_split_is_named(tmp_path: Path) -> None:
    bundle = carrying(make_bundle(tmp_path / "model"))
    (bundle.root / "training" / "split.csv").write_text("path,label\na,b\n", encoding="utf-8")
    with pytest.raises(ContractError, match=r"training/split\.csv is malformed"):
        TrainingTiles(seal(bundle.root), FeatureNetwork(bundle))


def report(table: Path, *options: str | Path) -> Result:
    return CliRunner().invoke(main, [str(table), "--similar", *map(str, options)])


def test_the_page_shows_them_and_says_what_they_do_not_prove(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="needs jinja2: pip install '.[report]'")
    tiles, model = tmp_path / "tiles", make_fake_bundle(tmp_path / "model")
    tiles.mkdir()
    for number in range(4):
        (tiles / f"{number:02d}.png").write_bytes(drawn_tile(number))
    table, page = tmp_path / "preds.csv", tmp_path / "page.html"
    config = BatchConfig(tiles, table, model.root, batch_size=4, workers=1)
    predict_folder(config, setup=RunSetup(choose_fake))
    named = ("--out", page, "--model", model.root)
    missing = report(table, *named)
    assert (missing.exit_code, "--similar needs --out, the tiles (--tiles)" in missing.output) == (2, True)
    without = report(table, *named, "--tiles", tiles)
    assert (without.exit_code, "carries no training tiles" in without.output) == (2, True)
    assert not page.exists()
    carrying(model)
    predict_folder(replace(config, overwrite=True), setup=RunSetup(choose_fake))
    done = report(table, *named, "--tiles", tiles)
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    # Both galleries show all four tiles, each with three neighbours, of which the first is the tile itself.
    cards = re.findall(r'<bdi class="path own">(\d\d)\.png</bdi>\s*<ol class="similar"(.*?)</ol>', text, re.DOTALL)
    assert len(cards) == 8
    for name, shown in cards:
        sources = re.findall(r'alt="training tile tiles/(\d\d)\.png"', shown)
        assert (len(sources), sources[0]) == (3, name)
        assert re.findall(r" ([\d.]+) away<", shown)[0] == "0.0"
    assert f"three nearest of the {CARRIED} training tiles that the bundle carries, of {LEARNT}" in text
    assert "do not prove that the class is right" in text
    assert "heat map" not in text


def test_tensorflow_is_not_loaded(carrier: Bundle) -> None:
    code = (
        "import sys; from pathlib import Path; from cervix_engine.bundle.bundle import Bundle\n"
        "from cervix_engine.report.reasons import Reasons; import numpy as np\n"
        f"reasons = Reasons(Bundle.open(Path({str(carrier.root)!r})), heatmaps=True, similar=True)\n"
        "reason = reasons.of(np.zeros((40, 30, 3), np.uint8)); assert reason.heat is not None and reason.similar\n"
        "assert not {'tensorflow', 'keras', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
