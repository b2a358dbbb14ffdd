"""Folded graphs compute what they did: rule by rule, on drawn graphs, and through the whole export."""

from __future__ import annotations

import logging
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.values import Pixels
from cervix_export.graphs.fold import fold_onnx, folded

from .conftest import CONTRACT

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]
RANDOM = np.random.default_rng(3)


class Drawing:
    """A graph from `x`, `(N, channels, 8, 8)`, or channels last, put together node by node."""

    def __init__(self, channels: int = 4, *, channels_last: bool = False) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.taken = ["N", 8, 8, channels] if channels_last else ["N", channels, 8, 8]
        self.last = "x"

    def constant(self, values: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> Drawing:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [*inputs], [name], name=name, **attributes))
        self.last = name
        return self

    def by(self, kind: str, values: Any, *, first: bool = False) -> Drawing:
        operands = [self.last, self.constant(values)]
        return self.node(kind, *(reversed(operands) if first else operands))

    def conv(self, shape: tuple[int, ...], *, bias: bool = True, **attributes: Any) -> Drawing:
        weights = self.constant(RANDOM.normal(0, 0.5, shape))
        inputs = [self.last, weights, *([self.constant(RANDOM.normal(0, 0.5, shape[0]))] if bias else [])]
        return self.node("Conv", *inputs, **attributes)

    def model(self, *outputs: str) -> Any:
        given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs or (self.last,)]
        taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.taken)
        graph = helper.make_graph(self.nodes, "drawn", [taken], given, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def kinds(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def computed(model: Any, x: Any) -> list[Any]:
    return list(ReferenceEvaluator(model).run(None, {"x": x}))


def check_same(model: Any) -> Any:
    """Fold, check that nothing else changed, and return the folded graph."""
    smaller = folded(model)
    onnx.checker.check_model(smaller, full_check=True)
    shape = [2 if axis.dim_param else axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    x = RANDOM.uniform(-1, 1, shape).astype(np.float32)
    for before, after in zip(computed(model, x), computed(smaller, x), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * max(1, np.abs(before).max()))
    assert list(model.graph.output) == list(smaller.graph.output)
    return smaller


CHANNELS = RANDOM.uniform(0.5, 2, 6)


@pytest.mark.parametrize("values", [2.5, [2.5], CHANNELS.reshape(6, 1, 1), CHANNELS.reshape(1, 6, 1, 1)])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["Mul", "Add"])
def test_rules_1_and_2_take_what_stands_behind(kind: str, bias: bool, first: bool, values: Any) -> None:
    drawing = Drawing().conv((6, 4, 3, 3), bias=bias, pads=[1, 1, 1, 1]).by(kind, values, first=first)
    assert kinds(check_same(drawing.model())) == {"Conv": 1}


def test_a_batch_norm_and_its_relu_become_one_convolution_and_a_relu() -> None:
    drawing = (
        Drawing().conv((6, 4, 1, 1)).by("Mul", CHANNELS.reshape(1, 6, 1, 1)).by("Add", CHANNELS.reshape(1, 6, 1, 1))
    )
    smaller = check_same(drawing.node("Relu", drawing.last).model())
    assert kinds(smaller) == {"Conv": 1, "Relu": 1}
    assert len(smaller.graph.initializer) == 2


@pytest.mark.parametrize("values", [1 / 255, RANDOM.uniform(0.5, 2, (4, 1, 1))])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rule_3_takes_a_scale_before_a_padded_convolution(values: Any, groups: int) -> None:
    drawing = Drawing().by("Mul", values).conv((8, 4 // groups, 3, 3), pads=[1, 1, 1, 1], group=groups)
    assert kinds(check_same(drawing.model())) == {"Conv": 1}


@pytest.mark.parametrize("values", [0.7, RANDOM.uniform(-2, 2, (1, 4, 1, 1))])
@pytest.mark.parametrize("groups", [1, 2])
def test_rule_4_takes_a_shift_before_a_convolution_that_pads_nothing(values: Any, groups: int) -> None:
    drawing = Drawing().by("Add", values).conv((8, 4 // groups, 3, 3), bias=False, group=groups)
    assert kinds(check_same(drawing.model())) == {"Conv": 1}


@pytest.mark.parametrize("attributes", [{"pads": [1, 1, 1, 1]}, {"pads": [0, 0, 0, 1]}, {"auto_pad": "SAME_UPPER"}])
def test_rule_4_leaves_a_shift_before_a_padded_convolution(attributes: dict[str, Any]) -> None:
    drawing = Drawing().by("Mul", 0.5).by("Add", -0.3).conv((4, 4, 3, 3), **attributes)
    smaller = check_same(drawing.model())
    assert kinds(smaller) == {"Mul": 1, "Add": 1, "Conv": 1}


def test_rule_4_takes_a_shift_by_zero_before_any_convolution() -> None:
    drawing = Drawing().by("Mul", 0.5).by("Add", 0.0).conv((4, 4, 3, 3), pads=[1, 1, 1, 1])
    assert kinds(check_same(drawing.model())) == {"Conv": 1}


@pytest.mark.parametrize("values", [1 / 255, RANDOM.uniform(0.5, 2, 4), RANDOM.uniform(0.5, 2, (1, 1, 4))])
def test_pixels_are_rescaled_through_a_transpose(values: Any) -> None:
    drawing = Drawing(channels_last=True).by("Mul", values)
    drawing.node("Transpose", drawing.last, perm=[0, 3, 1, 2]).conv((4, 4, 3, 3), pads=[1, 1, 1, 1])
    assert kinds(check_same(drawing.model())) == {"Transpose": 1, "Conv": 1}


@pytest.mark.parametrize("values", [1 / 255, RANDOM.uniform(0.5, 2, 4)])
def test_the_scale_of_pixels_stays_between_their_cast_and_a_transpose(values: Any) -> None:
    drawing = Drawing(channels_last=True)
    drawing.node("Cast", drawing.last, to=TensorProto.FLOAT).by("Mul", values).by("Add", 0.0)
    drawing.node("Transpose", drawing.last, perm=[0, 3, 1, 2]).conv((4, 4, 3, 3), pads=[1, 1, 1, 1])
    assert kinds(check_same(drawing.model())) == {"Cast": 1, "Mul": 1, "Transpose": 1, "Conv": 1}


def test_the_scale_of_pixels_with_channels_first_is_folded() -> None:
    drawing = Drawing()
    drawing.node("Cast", drawing.last, to=TensorProto.FLOAT).by("Mul", 1 / 255).conv((4, 4, 3, 3), pads=[1, 1, 1, 1])
    assert kinds(check_same(drawing.model())) == {"Cast": 1, "Conv": 1}


AROUND = (0, 0, 1, 1, 0, 0, 1, 1)


def padded_pool(
    widths: tuple[int, ...] = AROUND,
    *,
    before: str = "Relu",
    value: float | None = None,
    mode: str = "constant",
    **attributes: Any,
) -> Drawing:
    """A pooling behind a padding, by default of zeros, behind another node."""
    drawing = Drawing()
    drawing.node(before, drawing.last)
    drawing.constants.append(numpy_helper.from_array(np.array(widths, np.int64), "widths"))
    inputs = [drawing.last, "widths", *([] if value is None else [drawing.constant(value)])]
    drawing.node("Pad", *inputs, mode=mode)
    return drawing.node("MaxPool", drawing.last, **{"kernel_shape": [3, 3], "strides": [2, 2], **attributes})


@pytest.mark.parametrize("value", [None, 0.0])
@pytest.mark.parametrize("own", [{}, {"pads": [1, 0, 0, 1], "auto_pad": "NOTSET", "ceil_mode": 0}])
@pytest.mark.parametrize("widths", [AROUND, (0, 0, 0, 0, 0, 0, 1, 1)])
def test_rule_5_lets_a_pooling_pad_what_a_relu_gives(
    widths: tuple[int, ...], own: dict[str, Any], value: float | None
) -> None:
    smaller = check_same(padded_pool(widths, value=value, **own).model())
    assert kinds(smaller) == {"Relu": 1, "MaxPool": 1}


@pytest.mark.parametrize(
    "unlike",
    [
        {"before": "Identity"},
        {"before": "Tanh"},
        {"value": 0.5},
        {"value": -1.0},
        {"mode": "reflect"},
        {"widths": (0, 1, 1, 1, 0, 0, 1, 1)},
        {"widths": (0, 0, 3, 0, 0, 0, 0, 0)},
        {"auto_pad": "VALID"},
        {"auto_pad": "SAME_UPPER"},
        {"ceil_mode": 1},
        {"pads": [2, 2, 2, 2]},
    ],
)
def test_rule_5_leaves_all_other_padding(unlike: dict[str, Any]) -> None:
    assert kinds(check_same(padded_pool(**unlike).model()))["Pad"] == 1


def test_rule_5_leaves_padding_that_something_else_reads() -> None:
    drawing = padded_pool()
    assert kinds(check_same(drawing.model("t1", drawing.last)))["Pad"] == 1


def test_rule_5_leaves_padding_that_takes_away_and_pools_that_give_indices() -> None:
    assert kinds(folded(padded_pool((0, 0, -1, 1, 0, 0, 1, 1)).model()))["Pad"] == 1
    model = padded_pool().model()
    model.graph.node[-1].output.append("indices")
    assert kinds(folded(model))["Pad"] == 1


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 1, 1, 8), (2, 1, 1, 1)])
def test_other_constants_than_by_channel_are_left(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 2.0)
    assert kinds(check_same(Drawing().by("Mul", values).conv((4, 4, 1, 1)).model()))["Mul"] == 1
    assert kinds(check_same(Drawing().conv((4, 4, 1, 1)).by("Mul", values).model()))["Mul"] == 1


def test_a_constant_that_adds_an_axis_is_left() -> None:
    drawing = Drawing().conv((4, 4, 1, 1)).by("Mul", np.full((1, 1, 1, 1, 1), 2.0))
    assert kinds(check_same(drawing.model()))["Mul"] == 1


def test_a_constant_that_spreads_one_channel_is_left() -> None:
    drawing = Drawing(channels=1).by("Mul", np.ones((1, 4, 1, 1)) * 2).conv((4, 4, 1, 1))
    assert kinds(check_same(drawing.model()))["Mul"] == 1
    behind = Drawing().conv((1, 4, 1, 1)).by("Add", np.ones((1, 4, 1, 1)))
    assert kinds(check_same(behind.model()))["Add"] == 1


def test_what_more_than_one_node_reads_is_left() -> None:
    drawing = Drawing().by("Mul", 0.5)
    scaled = drawing.last
    drawing.conv((4, 4, 1, 1))
    convolved = drawing.last
    drawing.by("Mul", 3.0).node("Add", drawing.last, convolved).node("Add", drawing.last, scaled)
    assert kinds(check_same(drawing.model())) == {"Mul": 2, "Conv": 1, "Add": 2}


def test_what_the_graph_gives_is_left() -> None:
    drawing = Drawing().conv((4, 4, 1, 1))
    convolved = drawing.last
    drawing.by("Mul", 3.0)
    smaller = check_same(drawing.model(convolved, drawing.last))
    assert kinds(smaller) == {"Conv": 1, "Mul": 1}


def test_weights_of_two_convolutions_are_left() -> None:
    drawing = Drawing().conv((4, 4, 1, 1), bias=False)
    weights = drawing.constants[-1].name
    drawing.by("Mul", 2.0).node("Conv", drawing.last, weights).by("Mul", 2.0)
    assert kinds(check_same(drawing.model())) == {"Conv": 2, "Mul": 2}


def test_a_default_that_callers_may_override_is_no_constant() -> None:
    model = Drawing().conv((4, 4, 1, 1), bias=False).by("Mul", 2.0).model()
    model.graph.input.append(helper.make_tensor_value_info("c0", TensorProto.FLOAT, (4, 4, 1, 1)))
    assert kinds(check_same(model)) == {"Conv": 1, "Mul": 1}


def test_a_graph_with_graphs_inside_is_left() -> None:
    drawing = Drawing().conv((4, 4, 1, 1)).by("Mul", 2.0)
    inside = helper.make_graph(
        [helper.make_node("Identity", [drawing.last], ["y"])],
        "inside",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    condition = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    drawing.nodes.append(helper.make_node("Constant", [], ["true"], value=condition))
    drawing.node("If", "true", then_branch=inside, else_branch=inside)
    assert kinds(check_same(drawing.model()))["Mul"] == 1


OPERATIONS = st.sampled_from(
    ["scale", "shift", "scales", "shifts", "relu", "conv", "padded", "grouped", "fork", "join"]
)


@given(st.lists(OPERATIONS, min_size=1, max_size=12))
def test_any_graph_answers_as_before(operations: list[str]) -> None:
    drawing, forked = Drawing(), "x"
    for operation in operations:
        match operation:
            case "scale" | "scales":
                drawing.by("Mul", RANDOM.uniform(0.5, 1.5, (1, 4, 1, 1) if operation == "scales" else ()))
            case "shift" | "shifts":
                drawing.by("Add", RANDOM.uniform(-1, 1, (1, 4, 1, 1) if operation == "shifts" else ()))
            case "relu":
                drawing.node("Relu", drawing.last)
            case "conv":
                drawing.conv((4, 4, 1, 1), bias=bool(RANDOM.integers(2)))
            case "padded":
                drawing.conv((4, 4, 3, 3), pads=[1, 1, 1, 1])
            case "grouped":
                drawing.conv((4, 2, 1, 1), group=2)
            case "fork":
                forked = drawing.last
            case "join":
                drawing.node("Add", drawing.last, forked)
    if drawing.nodes:
        model = drawing.model()
        smaller = check_same(model)
        assert kinds(smaller)["Conv"] == kinds(model)["Conv"]
        assert check_same(smaller) == smaller, "nothing is left to fold"


def test_an_export_folds_batch_norms(exported: Exported) -> None:
    found = kinds(onnx.load_model_from_string(exported[0].read("model.onnx")))
    assert found["Conv"] == 3
    assert (found["Mul"], found["Add"]) == (1, 1), "the scale of pixels and the head's bias alone are left"
    assert "nodes folded to" in exported[1].stderr


def test_a_graph_that_would_answer_otherwise_is_left_as_it_was(
    exported: Exported, tmp_path: Path, golden_pixels: Pixels, caplog: Any
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(exported[0].read("model.onnx"))
    with caplog.at_level(logging.WARNING):
        fold_onnx(file, contract=CONTRACT, pixels=golden_pixels[:4], most_absdiff=-1.0)
    assert "left as converted" in caplog.text
    assert file.read_bytes() == exported[0].read("model.onnx")
