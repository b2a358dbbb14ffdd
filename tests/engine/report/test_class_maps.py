"""Heat maps: hot where what decides is, exact for the network as it is, and refused in a line where they cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.cli.report import main
from cervix_engine.contract import ModelContract
from cervix_engine.errors import UsageError
from cervix_engine.report.class_maps import _lead, class_map, painted
from cervix_engine.report.feature_network import Dense, FeatureNetwork, Floats
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.values import Pixels
from engine.run.support import CONTRACT, choose_fake, draw_folder, drawn_tile, make_fake_bundle, reference_probabilities

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install '.[report]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[cpu]'")

CELL = 8


def bundle_of(root: Path, graph: bytes) -> Bundle:
    root.mkdir()
    ModelContract(CONTRACT.classes[:2], input_size=(64, 64)).save(root / "contract.json")
    (root / "model.onnx").write_bytes(graph)
    return seal(root)


def bright_square_decides(*, pooling: str = "GlobalAveragePool", tail: str = "Softmax", last: bool = False) -> bytes:
    """`uint8 (N, 64, 64, 3)`: cells of 8 pixels that are brighter than 200 speak for class 0, by two dense layers."""
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    constants = {
        "third": np.full((1, 3, CELL, CELL), 1 / (3 * CELL * CELL), np.float32),
        "floor": np.array([-200], np.float32),
        "axes": np.array([1, 2] if last else [2, 3], np.int64),
        "first": np.array([[0.5, -0.5]], np.float32),
        "first_bias": np.array([0.1, 0.2], np.float32),
        "second": np.array([[2, -1], [0.5, 1]], np.float32),
        "second_bias": np.array([-0.3, 0.3], np.float32),
    }
    pool = (
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"])
        if pooling == "GlobalAveragePool"
        else helper.make_node("ReduceMean", ["features", "axes"], ["pooled"], keepdims=0)
    )
    nodes = [
        helper.make_node("Cast", ["tiles"], ["numbers"], to=number),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "third", "floor"], ["brightness"], strides=[CELL, CELL]),
        helper.make_node("Relu", ["brightness"], ["positive"]),
        helper.make_node("Transpose", ["positive"], ["features"], perm=[0, 2, 3, 1] if last else [0, 1, 2, 3]),
        pool,
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
        helper.make_node("Add", ["hidden", "first_bias"], ["shifted"]),
        helper.make_node("Relu", ["shifted"], ["passed"]),
        helper.make_node("Gemm", ["passed", "second", "second_bias"], ["logits"]),
        helper.make_node(tail, ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("tiles", onnx.TensorProto.UINT8, ["N", 64, 64, 3])],
        [helper.make_tensor_value_info("probabilities", number, ["N", 2])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tile_with_square(row: int, column: int) -> Pixels:
    tile = np.random.default_rng(0).integers(60, 140, (64, 64, 3), np.uint8)
    tile[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 250
    return tile


def heat_of(network: FeatureNetwork, tile: Pixels) -> Floats:
    (features,) = network.features([tile])
    return class_map(features, network.head)


@pytest.mark.parametrize(("row", "column"), [(1, 6), (5, 2)])
@pytest.mark.parametrize(
    ("pooling", "last"), [("GlobalAveragePool", False), ("ReduceMean", False), ("ReduceMean", True)]
)
def test_the_planted_square_that_decides_is_hot(
    tmp_path: Path, row: int, column: int, pooling: str, *, last: bool
) -> None:
    graph = bright_square_decides(pooling=pooling, last=last)
    network = FeatureNetwork(bundle_of(tmp_path / "planted", graph), with_head=True)
    tile = tile_with_square(row, column)
    heat = heat_of(network, tile)
    assert heat.shape == (8, 8)
    assert divmod(int(heat.argmax()), 8) == (row, column)
    assert heat[row, column] > 0
    assert np.count_nonzero(heat) == 1
    shown = painted(tile, heat).astype(int)
    assert shown.shape == tile.shape
    grey = shown.max(axis=-1) - shown.min(axis=-1)
    middle = (slice(row * CELL + 2, row * CELL + 6), slice(column * CELL + 2, column * CELL + 6))
    assert grey[middle].mean() > 40, "coloured"
    far = grey[:, :8] if column > 4 else grey[:, -8:]
    assert far.mean() < 5, "left grey"


def test_a_map_adds_up_to_the_lead_of_the_class(bundle: Bundle) -> None:
    """Of the tiny model, whose head is one dense layer: what is left over is its bias, as the lead weighs it."""
    network = FeatureNetwork(bundle, with_head=True)
    (dense,) = network.head
    for seed in range(5):
        pixels = preprocess(drawn_tile(seed), contract=CONTRACT)
        logs = np.log(reference_probabilities(pixels[None])[0].astype(np.float64))
        first = int(logs.argmax())
        rivals = np.exp(logs)
        rivals[first] = 0
        weights = -rivals / rivals.sum()
        weights[first] = 1
        left = float(weights @ logs - weights @ dense.bias)
        assert float(heat_of(network, pixels).sum()) == pytest.approx(left, abs=1e-3)


def test_the_lead_is_the_gradient_of_the_head() -> None:
    random = np.random.default_rng(0)

    def layer(rows: int, columns: int, *, relu: bool) -> Dense:
        return Dense(
            random.normal(size=(rows, columns)).astype(np.float32),
            random.normal(size=columns).astype(np.float32),
            relu,
        )

    head = [layer(6, 5, relu=True), layer(5, 4, relu=True), layer(4, 3, relu=False)]
    pooled = random.normal(size=6).astype(np.float32)

    def logits(values: np.ndarray) -> np.ndarray:
        for dense in head:
            values = values @ dense.weights + dense.bias
            values = values.clip(0) if dense.relu else values
        return np.asarray(values)

    at = logits(pooled.astype(np.float64))
    first = int(at.argmax())
    weights = np.exp(at - at.max())
    weights[first] = 0
    weights /= -weights.sum()
    weights[first] = 1
    step = 1e-4 * np.eye(6)
    slopes = [(logits(pooled + row) - logits(pooled - row)) @ weights / 2e-4 for row in step]
    assert _lead(head, pooled) == pytest.approx(slopes, abs=1e-3)


def test_another_network_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in global average pooling and dense layers: this one has Sigmoid"):
        FeatureNetwork(bundle_of(tmp_path / "sigmoid", bright_square_decides(tail="Sigmoid")), with_head=True)


def test_the_page_shows_them_and_says_what_they_do_not_prove(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="needs jinja2: pip install '.[report]'")
    tiles, model = draw_folder(tmp_path / "tiles", 6), make_fake_bundle(tmp_path / "model").root
    table = tmp_path / "preds.csv"
    predict_folder(BatchConfig(tiles, table, model, batch_size=4, workers=1), setup=RunSetup(choose_fake))
    page = tmp_path / "page.html"
    options = [str(table), "--out", str(page), "--model", str(model), "--heatmaps"]
    without = CliRunner().invoke(main, options)
    assert without.exit_code == 2
    assert "--heatmaps needs --out, the tiles (--tiles)" in without.output
    done = CliRunner().invoke(main, [*options, "--tiles", str(tiles)])
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert text.count('alt="heat map of tile') == 12
    assert "does not prove that the network is right" in text
