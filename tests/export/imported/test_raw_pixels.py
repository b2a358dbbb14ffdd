"""ONNX graphs are brought to raw pixels and probabilities as it is stated of them, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cervix_engine.bundle.imported import ImportStatement, StatedInput
from cervix_engine.bundle.outputs import check_outputs
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract, OperatingPoint
from cervix_engine.errors import ContractError, ConversionError
from cervix_export.graphs.compute import answers
from cervix_export.imported.raw_pixels import checked_bytes, raw_pixel_graph, read_graph

# Graphs: mean over all pixels of each channel, to which a head of two classes is put.

CONTRACT = ModelContract(SIPAKMED_CLASSES[:2], input_size=(6, 8))
HEAD = np.array([[0.02, -0.01], [-0.03, 0.02], [0.01, 0.04]], np.float32)


def small_graph(
    *, layout: str = "NCHW", kind: int = TensorProto.FLOAT, size: tuple[int, int] = (6, 8), batch: int | str = "N",
    names: tuple[str, str] = ("input0", "output0"), domain: str = "", reshape: tuple[int, ...] | None = None,
    head: Any = HEAD, opset: int = 13,
) -> Any:  # fmt: skip
    """Logits from the means of the channels."""
    axes, shape = ([2, 3], [batch, 3, *size]) if layout == "NCHW" else ([1, 2], [batch, *size, 3])
    float_kind = TensorProto.FLOAT if kind == TensorProto.UINT8 else kind
    dtype = helper.tensor_dtype_to_np_dtype(float_kind)
    nodes = [
        helper.make_node("Cast", [names[0]], ["cast"], to=float_kind),
        helper.make_node("ReduceMean", ["cast"], ["means"], axes=axes, keepdims=0, domain=domain)
        if opset < 18
        else helper.make_node("ReduceMean", ["cast", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "head"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(head.astype(dtype), "head")]
    if opset >= 18:
        constants.append(numpy_helper.from_array(np.array(axes, np.int64), "axes"))
    if reshape:
        nodes.append(helper.make_node("Reshape", ["logits", "shape"], [names[1]]))
        constants.append(numpy_helper.from_array(np.array(reshape, np.int64), "shape"))
    else:
        nodes.append(helper.make_node("Identity", ["logits"], [names[1]]))
    taken = helper.make_tensor_value_info(names[0], kind, shape)
    given = helper.make_tensor_value_info(names[1], float_kind, [batch, 2])
    graph = helper.make_graph(nodes, "main_graph", [taken], [given], constants)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def brought_in(model: Any, statement: ImportStatement) -> Any:
    read = read_graph(model.SerializeToString(), name="model.onnx")
    return onnx.load_model_from_string(checked_bytes(raw_pixel_graph(read, statement), statement))


def by_hand(pixels: Any, stated: StatedInput) -> Any:
    """The same arithmetic in numpy: NHWC means, logits, softmax."""
    if stated.crop:
        top, left = ((size - seen) // 2 for size, seen in zip(pixels.shape[1:3], stated.crop, strict=True))
        pixels = pixels[:, top : top + stated.crop[0], left : left + stated.crop[1]]
    channels = pixels[..., ::-1] if stated.channel_order == "BGR" else pixels
    values = (channels.astype(np.float64) / 255 * stated.pixel_max - stated.mean) / stated.std
    logits = values.mean(axis=(1, 2)) @ HEAD
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "stated",
    [
        StatedInput(),
        StatedInput(channel_order="BGR", mean=(103.939, 116.779, 123.68)),
        StatedInput(pixel_max=1.0, mean=(0.4, 0.5, 0.6), std=(0.01, 0.02, 0.03)),
        StatedInput(pixel_max=1.0, std=(0.01, 0.01, 0.02), channel_order="BGR", crop=(3, 4)),
    ],
)
def test_the_graph_does_what_is_stated(layout: Any, stated: StatedInput) -> None:
    statement = ImportStatement(CONTRACT, replace(stated, layout=layout), "logits")
    graph = brought_in(small_graph(layout=layout, size=statement.seen_size), statement)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    assert np.allclose(answers(graph, pixels), by_hand(pixels, stated), atol=1e-5)


def test_half_precision_and_raw_graphs_are_taken_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    stated = StatedInput(layout="NCHW", pixel_max=1.0, std=(0.1, 0.1, 0.1))
    half = brought_in(small_graph(kind=TensorProto.FLOAT16), ImportStatement(CONTRACT, stated, "logits"))
    assert np.allclose(answers(half, pixels), by_hand(pixels, stated), atol=5e-3)
    raw = ImportStatement(CONTRACT, StatedInput(), "logits")
    graph = brought_in(small_graph(layout="NHWC", kind=TensorProto.UINT8), raw)
    assert np.allclose(answers(graph, pixels), by_hand(pixels, StatedInput()), atol=1e-5)
    scaled = ImportStatement(CONTRACT, StatedInput(pixel_max=1.0), "logits")
    with pytest.raises(ConversionError, match="takes UINT8"):
        brought_in(small_graph(layout="NHWC", kind=TensorProto.UINT8), scaled)


NCHW = ImportStatement(CONTRACT, StatedInput(layout="NCHW"), "logits")


def test_names_and_a_fixed_batch_are_no_obstacle() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    for model in (
        small_graph(names=("tiles", "probabilities")),
        small_graph(batch=1),
        small_graph(names=("scale", "x")),
    ):
        assert np.allclose(answers(brought_in(model, NCHW), pixels), by_hand(pixels, StatedInput()), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (small_graph(batch=1, reshape=(1, 2)), "does not compute 3 tiles .*: export it with a dynamic batch axis$"),
        (
            small_graph(head=np.full((3, 2), np.nan)),
            "answers are not all numbers, but NaN or infinite: look at its",
        ),
        (
            small_graph(head=np.full((3, 2), np.inf)),
            "answers are not all numbers, but NaN or infinite: look at its",
        ),
        (small_graph(head=np.ones((3, 3))), r"gives \(1, 3\) for 1 tile, expected \(1, 2\): one number for each class"),
        (small_graph(reshape=(-1,)), r"does not compute 1 tile \((?!.*dynamic batch axis)"),
        (small_graph(opset=99), r"does not compute 1 tile \((?!.*dynamic batch axis)"),
        (small_graph(kind=TensorProto.DOUBLE), "takes DOUBLE"),
        (small_graph(domain="com.microsoft"), "needs operators of com.microsoft"),
    ],
    ids=["fixed batch", "NaN", "infinite", "classes", "rank 1", "new opset", "double", "foreign operator"],
)
def test_graphs_that_cannot_be_served_are_refused(model: Any, words: str, capfd: Any) -> None:
    with pytest.raises(ConversionError, match=words):
        brought_in(model, NCHW)
    assert capfd.readouterr().err == "", "ONNX Runtime's own lines"


@pytest.mark.parametrize("listed", [True, False], ids=["constants as inputs", "constants alone"])
@pytest.mark.parametrize("opset", [7, 8, 12])
def test_graphs_in_the_old_form_are_converted(opset: int, listed: bool) -> None:
    model = small_graph(opset=opset)
    model.ir_version = 3
    if listed:
        for constant in model.graph.initializer:
            shape = helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims)
            model.graph.input.append(shape)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    assert np.allclose(answers(brought_in(model, NCHW), pixels), by_hand(pixels, StatedInput()), atol=1e-5)


@pytest.mark.parametrize("stated", ["logits", "probabilities"])
def test_independent_outputs_are_refused_whatever_is_stated_of_them(stated: Any) -> None:
    sigmoids = np.array([[0.9, 0.4], [0.2, 0.1]], np.float32)
    with pytest.raises(ContractError, match=r"add up to 0.3 to 1.3, as independent \(sigmoid\) outputs do"):
        check_outputs(sigmoids, stated=stated)


def test_outputs_are_what_is_stated_of_them() -> None:
    logits, probabilities = np.array([[2.0, -1.0]], np.float32), np.array([[0.75, 0.25]], np.float32)
    check_outputs(logits, stated="logits")
    check_outputs(probabilities, stated="probabilities")
    with pytest.raises(ContractError, match='state "output": "logits"'):
        check_outputs(logits, stated="probabilities")
    with pytest.raises(ContractError, match='state "output": "probabilities"'):
        check_outputs(probabilities, stated="logits")
    with pytest.raises(ContractError, match="not all numbers"):
        check_outputs(np.array([[np.nan, 1.0]], np.float32), stated="logits")


def test_two_outputs_and_external_data_are_refused() -> None:
    two = small_graph()
    two.graph.output.append(helper.make_tensor_value_info("means", TensorProto.FLOAT, ["N", 3]))
    with pytest.raises(ConversionError, match=r"2 outputs \(output0, means\)"):
        brought_in(two, NCHW)
    outside = small_graph()
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    entry = outside.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "../secret"
    with pytest.raises(ConversionError, match="keeps tensors in another file"):
        brought_in(outside, NCHW)
    with pytest.raises(ConversionError, match=r"model.onnx cannot be used: .*not an ONNX protobuf"):
        read_graph(b"none", name="model.onnx")


def test_an_answer_that_depends_on_its_neighbours_is_refused() -> None:
    model = small_graph()
    batch_mean = helper.make_node("ReduceMean", ["logits"], ["mean"], axes=[0], keepdims=1)
    model.graph.node.insert(3, batch_mean)
    model.graph.node[-1].CopyFrom(helper.make_node("Sub", ["logits", "mean"], ["output0"]))
    with pytest.raises(ConversionError, match="depends on the others in its batch"):
        brought_in(model, NCHW)


def test_statements_are_read_back_and_checked() -> None:
    stated = StatedInput("NCHW", "BGR", 1.0, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (4, 4))
    statement = ImportStatement(CONTRACT, stated, "logits")
    assert ImportStatement.from_json(json.loads(json.dumps(statement.to_json()))) == statement
    assert ImportStatement.from_json(CONTRACT.to_json()) == ImportStatement(CONTRACT)
    five = ImportStatement(ModelContract(SIPAKMED_CLASSES), output="logits").to_json()
    decided = {**five, "operating_point": {"abnormal_at": 0.2}}
    assert ImportStatement.from_json(decided).contract.operating_point == OperatingPoint(0.2)
    with pytest.raises(ContractError, match=r"crop .* is larger than input_size"):
        ImportStatement(CONTRACT, StatedInput(crop=(7, 8)))
    for wrong in ({"layout": "CHW"}, {"channel_order": "GBR"}, {"pixel_max": 0}, {"mean": [1, 2]}, {"crop": [0, 1]}):
        with pytest.raises(ContractError, match=next(iter(wrong))):
            ImportStatement.from_json({**statement.to_json(), "input": wrong})
