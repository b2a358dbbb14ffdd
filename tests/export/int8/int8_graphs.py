"""Graphs that tests of INT8 look at: of an export, and a small residual one."""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cervix_engine.bundle.bundle import Bundle

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]


def graph_of(exported: Exported, name: str) -> Any:
    return onnx.load_model_from_string(exported[0].read(name))


def residual_graph() -> Any:
    """Two blocks of 3×3 convolutions on a stream of 8 channels: the first changes the stream, the second adds to it."""
    random = np.random.default_rng(5)
    constants, nodes = [], []

    def convolution(name: str, data: str, channels: int) -> str:
        weights = random.normal(0, 0.4, (8, channels, 3, 3)).astype(np.float32)
        bias = random.normal(0, 0.1, 8).astype(np.float32)
        constants.extend([numpy_helper.from_array(weights, f"{name}/w"), numpy_helper.from_array(bias, f"{name}/b")])
        nodes.append(helper.make_node("Conv", [data, f"{name}/w", f"{name}/b"], [name], name=name, pads=[1, 1, 1, 1]))
        return name

    def relu(data: str) -> str:
        nodes.append(helper.make_node("Relu", [data], [f"{data}/relu"], name=f"{data}/relu"))
        return f"{data}/relu"

    def add(left: str, right: str, name: str) -> str:
        nodes.append(helper.make_node("Add", [left, right], [name], name=name))
        return relu(name)

    constants.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"))
    nodes.append(helper.make_node("Cast", ["tiles"], ["numbers"], to=onnx.TensorProto.FLOAT))
    nodes.append(helper.make_node("Mul", ["numbers", "scale"], ["scaled"]))
    nodes.append(helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]))
    stem = relu(convolution("stem", "planes", 3))
    first = add(convolution("shortcut", stem, 8), convolution("one", relu(convolution("zero", stem, 8)), 8), "sum_1")
    second = add(convolution("three", relu(convolution("two", first, 8)), 8), first, "sum_2")
    nodes.append(helper.make_node("GlobalAveragePool", [second], ["pooled"]))
    shapes = (("tiles", onnx.TensorProto.UINT8, ["N", 16, 16, 3]), ("pooled", onnx.TensorProto.FLOAT, ["N", 8, 1, 1]))
    given, got = (helper.make_tensor_value_info(*shape) for shape in shapes)
    graph = helper.make_graph(nodes, "residual", [given], [got], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
