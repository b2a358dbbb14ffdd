"""The FP16 graph is one: by size, by the types of its operands, and not by its name."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.errors import ConversionError
from cervix_engine.values import Pixels
from cervix_export.graphs.half import fp16_from_onnx, prove_half
from cervix_export.graphs.precision_proof import half_share

from .conftest import CONTRACT

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]


def graph_of(exported: Exported, name: str) -> Any:
    return onnx.load_model_from_string(exported[0].read(name))


def test_the_half_graph_is_proven_to_be_one(exported: Exported) -> None:
    assert half_share(graph_of(exported, "model.fp16.onnx")) >= 0.99
    assert prove_half(graph_of(exported, "model.fp16.onnx")) >= 0.99


def test_an_fp32_graph_under_the_name_of_fp16_is_found_out(exported: Exported) -> None:
    planted = graph_of(exported, "model.onnx")
    assert half_share(planted) == 0
    with pytest.raises(ConversionError, match=r"0\.0% .* in half precision, expected 99%"):
        prove_half(planted)


def test_one_layer_left_in_fp32_is_found_out(exported: Exported) -> None:
    planted = graph_of(exported, "model.fp16.onnx")
    widen_last_convolution(planted.graph)
    with pytest.raises(ConversionError, match="in half precision"):
        prove_half(planted)


def widen_last_convolution(graph: Any) -> None:
    """Compute the last convolution in float32, between two casts, as a careless converter would."""
    at, last = [(i, node) for i, node in enumerate(graph.node) if node.op_type == "Conv"][-1]
    casts = [helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT) for name in last.input]
    back = helper.make_node("Cast", ["wide"], [last.output[0]], to=TensorProto.FLOAT16)
    wide = helper.make_node("Conv", [f"{name}_wide" for name in last.input], ["wide"])
    wide.attribute.extend(last.attribute)
    nodes = [*graph.node[:at], *casts, wide, back, *graph.node[at + 1 :]]
    del graph.node[:]
    graph.node.extend(nodes)


def test_the_half_graph_is_half_the_size(exported: Exported) -> None:
    root = exported[0].root
    assert (root / "model.fp16.onnx").stat().st_size <= 0.52 * (root / "model.onnx").stat().st_size


def test_the_half_graph_answers_nearly_as_keras_does(exported: Exported, golden_pixels: Pixels) -> None:
    session = onnxruntime.InferenceSession(exported[0].read("model.fp16.onnx"), providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"tiles": golden_pixels})
    expected = GoldenSet.load(exported[0]).probabilities()
    assert 0 < np.abs(answers - expected).max() <= 0.02


def test_the_softmax_stays_in_single_precision(exported: Exported) -> None:
    """Read from the graph: ONNX Runtime's CPU computes it in float32 either way, a strongly typed runtime does not."""
    graph = onnx.shape_inference.infer_shapes(graph_of(exported, "model.fp16.onnx")).graph
    (softmax,) = [node for node in graph.node if node.op_type == "Softmax"]
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    assert [types[name] for name in (*softmax.input, *softmax.output)] == [TensorProto.FLOAT] * 2


def test_a_graph_that_ends_in_something_else_than_softmax_is_converted_whole(
    exported: Exported, tmp_path: Path
) -> None:
    model = graph_of(exported, "model.onnx")
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Sigmoid"
    del softmax.attribute[:]
    onnx.save_model(model, tmp_path / "model.onnx")
    fp16_from_onnx(tmp_path / "model.onnx", tmp_path / "half.onnx", contract=CONTRACT)
    assert half_share(onnx.load_model(tmp_path / "half.onnx")) >= 0.99


def layered(*nodes: Any, taken: tuple[Any, ...], given: tuple[Any, ...], weights: dict[str, Any]) -> Any:
    """A graph of `nodes` from `taken` to `given`, both (name, numpy dtype, shape)."""
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
        for name, dtype, shape in (taken, given)
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "graph", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_the_share_is_counted_in_multiply_accumulates() -> None:
    """8·8·4 outputs of 2·9 products each in half (two groups of two), then 4·10 products in single precision."""
    model = layered(
        helper.make_node("Conv", ["x", "kernel"], ["features"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["single", "head"], ["y"], transB=1),
        taken=("x", np.float16, ["N", 4, 8, 8]),
        given=("y", np.float32, ["N", 10]),
        weights={"kernel": np.ones((4, 2, 3, 3), np.float16), "head": np.ones((10, 4), np.float32)},
    )
    half, single = 8 * 8 * 4 * 2 * 9, 4 * 10
    assert half_share(model) == half / (half + single)


def test_matrix_products_count_their_inner_axis() -> None:
    model = layered(
        helper.make_node("MatMul", ["x", "first"], ["hidden"]),
        helper.make_node("Cast", ["hidden"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["single", "second"], ["y"]),
        taken=("x", np.float16, ["N", 6]),
        given=("y", np.float32, ["N", 2]),
        weights={"first": np.ones((6, 3), np.float16), "second": np.ones((3, 2), np.float32)},
    )
    assert half_share(model) == 18 / (18 + 6)


def test_a_transposed_first_operand_counts_its_first_axis() -> None:
    model = layered(
        helper.make_node("Gemm", ["x", "first"], ["hidden"], transA=1),
        helper.make_node("Cast", ["hidden"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["single", "second"], ["y"]),
        taken=("x", np.float16, [7, 5]),
        given=("y", np.float32, [5, 2]),
        weights={"first": np.ones((7, 3), np.float16), "second": np.ones((3, 2), np.float32)},
    )
    assert half_share(model) == (5 * 7 * 3) / (5 * 7 * 3 + 5 * 3 * 2)


def test_a_graph_without_products_has_no_half_share() -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    values = {"taken": ("x", np.float16, ["N", 4]), "given": ("y", np.float16, ["N", 4])}
    assert half_share(layered(relu, weights={}, **values)) == 0


def test_layers_inside_a_branch_cannot_be_proven() -> None:
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["out"])], "branch", [], [out])
    model = layered(
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
        taken=("x", np.float32, ["N", 4]),
        given=("y", np.float32, ["N", 4]),
        weights={"yes": np.array(True)},
    )
    with pytest.raises(ConversionError, match="graphs inside"):
        half_share(model)
