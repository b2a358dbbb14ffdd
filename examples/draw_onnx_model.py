"""Makes what somebody brings who trained elsewhere: an ONNX graph as timm's exporter gives it, and its answers.

    python examples/draw_onnx_model.py brought/

The graph takes `float32 (batch, 3, 64, 64)` and gives logits; ImageNet's mean and deviation are taken off outside of
it. Beside it lie drawn tiles, the answers of that pipeline to them, and the contract that states all this for
`cervix-import`. It is drawn with onnx's own helpers: PyTorch is not needed. Its head is fitted to features of random
convolutions.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cervix_engine.bundle.imported import ImportStatement, StatedInput
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.values import Pixels
from cervix_train.synthetic import draw_tile

SIDE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATEMENT = ImportStatement(
    ModelContract(SIPAKMED_CLASSES, input_size=(SIDE, SIDE)),
    StatedInput(layout="NCHW", channel_order="RGB", pixel_max=1.0, mean=MEAN, std=STD),
    output="logits",
)
FILTERS = (32, 128)
OPSET = 17

Floats = npt.NDArray[np.float32]


def drawn_cells(tiles: int, *, seed: int) -> tuple[Pixels, list[str]]:
    """Drawn tiles at the model's size, `uint8 (N, 64, 64, 3)`, and their classes."""
    labels = [SIPAKMED_CLASSES[number % 5].name for number in range(tiles)]
    drawn = (draw_tile(label, field=number, cell=1, seed=seed) for number, label in enumerate(labels))
    return np.stack([cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for pixels in drawn]), labels


def prepared(pixels: Pixels) -> Floats:
    """What that pipeline does before the model: `float32 (N, 3, 64, 64)`."""
    scaled = (pixels.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def softmax(logits: Floats) -> Floats:
    """What that pipeline does behind the model."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def model_with(head: Floats, bias: Floats, *, batch: int | str = "batch") -> Any:
    """Two convolutions, global average pooling and a linear head, named as by timm's exporter."""
    random = np.random.default_rng(0)
    shapes = {"conv1.weight": (FILTERS[0], 3, 5, 5), "conv2.weight": (FILTERS[1], FILTERS[0], 3, 3)}
    weights = {
        name: random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    weights |= {"fc.weight": head, "fc.bias": bias}
    nodes = [
        helper.make_node("Conv", ["input0", "conv1.weight"], ["c1"], strides=[2, 2], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "conv2.weight"], ["c2"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"], axis=1),
        helper.make_node("Gemm", ["features", "fc.weight", "fc.bias"], ["output0"], transB=1),
    ]
    taken = helper.make_tensor_value_info("input0", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])
    given = helper.make_tensor_value_info("output0", TensorProto.FLOAT, [batch, len(head)])
    constants = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "main_graph", [taken], [given], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def fitted_model() -> Any:
    """The model, its head fitted to drawn cells by least squares."""
    pixels, labels = drawn_cells(300, seed=1)
    names = [item.name for item in SIPAKMED_CLASSES]
    identity = model_with(np.eye(FILTERS[1], dtype=np.float32), np.zeros(FILTERS[1], np.float32))
    features = run(identity, prepared(pixels))
    columns = np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)
    wanted = np.eye(len(names), dtype=np.float32)[[names.index(label) for label in labels]]
    ridge = columns.T @ columns + np.eye(columns.shape[1])
    solved = np.linalg.solve(ridge, columns.T @ (8 * wanted - 4)).astype(np.float32)
    return model_with(np.ascontiguousarray(solved[:-1].T), solved[-1])


def run(model: Any, inputs: Floats) -> Floats:
    """The outputs of a graph."""
    import onnxruntime  # after the engine, which keeps it from calling home

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--tiles", type=click.IntRange(1), default=60, show_default=True, help="Number of golden tiles.")
def main(out: Path, tiles: int) -> None:
    """Write model.onnx, contract.json, tiles/ and expected.csv into OUT."""
    (out / "tiles").mkdir(parents=True, exist_ok=True)
    model = fitted_model()
    onnx.save(model, out / "model.onnx")
    (out / "contract.json").write_text(json.dumps(STATEMENT.to_json(), indent=2) + "\n", encoding="utf-8")
    pixels, labels = drawn_cells(tiles, seed=2)
    answers = softmax(run(model, prepared(pixels)))
    with (out / "expected.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", *(f"prob_{item.name}" for item in SIPAKMED_CLASSES)))
        for number, (tile, label, answer) in enumerate(zip(pixels, labels, answers, strict=True)):
            name = f"{number:03d}.png"
            cv2.imwrite(str(out / "tiles" / name), cv2.cvtColor(tile, cv2.COLOR_RGB2BGR))
            writer.writerow((name, label, *(f"{value:.6f}" for value in answer)))


if __name__ == "__main__":
    main()
