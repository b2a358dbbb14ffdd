"""Brings an ONNX graph that somebody else exported to raw pixels: what is stated of it is put into it.

    uint8 tiles (N, H, W, 3) → Cast → centre crop → Transpose → order of channels → + offset → · scale → the graph
      → softmax, of logits → float32 probabilities (N, classes)

1. The file holds all of its data, and passes ONNX's own checker.
2. It has one input of three channels and one output, and no operators but ONNX's own.
3. Before opset 13 it is converted to 17: the softmax of earlier opsets means something else.
4. It computes any number of tiles, each as if alone. One that was exported for a single batch size may do so too, once
   its batch axis is opened; that is tried.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cervix_engine.bundle.imported import ImportStatement
from cervix_engine.bundle.onnx_guard import refuse_external_data
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, ConversionError
from cervix_engine.values import Pixels, Probabilities
from cervix_engine.words import counted
from cervix_export.graphs.compute import answers
from cervix_keras.graph import INPUT, OPSET, OUTPUT, check_graph, last_line

# Names that the graph came with are put behind this, so that none is that of a new node.
PREFIX = "imported/"

_OLDEST_OPSET = 13
# The first IR version whose constants need not be inputs.
_CONSTANTS_ALONE = 4
_ALONE_ABSDIFF = 1e-4


def read_graph(data: bytes, *, name: str) -> Any:
    """An ONNX file as a `ModelProto` that can be built on.

    Raises:
        ConversionError: it is no valid ONNX, refers to other files, or needs operators that are not ONNX's.
    """
    import onnx

    try:
        refuse_external_data(data)
        model = onnx.load_model_from_string(data)
        model.ir_version = max(model.ir_version, _CONSTANTS_ALONE)
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
        if foreign:
            raise ConversionError(f"{name} needs operators of {', '.join(foreign)}: export it with ONNX's own alone")
        if _opset(model) < _OLDEST_OPSET:
            model = onnx.version_converter.convert_version(model, OPSET)
    except ConversionError:
        raise
    except Exception as error:  # checker, converter and protobuf raise whatever they find
        words = str(error) if isinstance(error, ContractError) else f"{type(error).__name__}: {last_line(str(error))}"
        raise ConversionError(f"{name} cannot be used: {words}") from error
    model = onnx.compose.add_prefix(_without_default_inputs(model), PREFIX)
    _name_nodes(model)
    _give_biases(model)
    return model


def raw_pixel_graph(model: Any, statement: ImportStatement) -> Any:
    """The `ModelProto` of a graph that takes raw pixels and gives probabilities.

    Args:
        model: as `read_graph` gives it; it stays as it is.
        statement: what is stated of it.

    Raises:
        ConversionError: its input or output is not what is stated.
    """
    import onnx

    raw = onnx.ModelProto()
    raw.CopyFrom(model)
    graph = raw.graph
    taken, given = _the_one(graph.input, "input"), _the_one(graph.output, "output")
    _check_input(taken, statement)
    before = _nodes_before(taken, statement)
    behind = _nodes_behind(given, statement)
    nodes = [*before, *graph.node, *behind]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(_constants(taken, statement))
    contract = statement.contract
    shape = ["N", *contract.input_size, 3]
    graph.input.append(onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, shape))
    classes = ["N", len(contract.classes)]
    graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, classes))
    return raw


def checked_bytes(raw: Any, statement: ImportStatement) -> bytes:
    """The bytes of a raw-pixel graph that computes any number of tiles, each as if it were alone.

    Raises:
        ConversionError: it does not.
    """
    contract = statement.contract
    pixels = np.random.default_rng(0).integers(0, 256, (3, *contract.input_size, 3), np.uint8)
    # One tile first: whatever goes wrong there has nothing to do with the batch axis.
    first = _answers_of(raw, pixels[:1], contract, remedy="one number for each class in the contract")
    dynamic = "export it with a dynamic batch axis"
    together = _answers_of(raw, pixels, contract, remedy=dynamic)
    others = [_answers_of(raw, pixels[index : index + 1], contract, remedy=dynamic) for index in (1, 2)]
    alone = np.concatenate([first, *others])
    difference = float(np.abs(together - alone).max())
    if not difference <= _ALONE_ABSDIFF * max(1.0, float(np.abs(alone).max())):
        raise ConversionError(f"a tile's answer depends on the others in its batch, by {difference:.2g}")
    data: bytes = raw.SerializeToString()
    check_graph(data, contract)
    return data


def _answers_of(raw: Any, pixels: Pixels, contract: ModelContract, *, remedy: str) -> Probabilities:
    """What a graph answers to a few tiles, in the shape that the contract has; `remedy` is for where it does not."""
    tiles = counted(len(pixels), "tile")
    try:
        given = answers(raw, pixels)
    except Exception as error:  # ONNX Runtime raises classes of its own, without a common base
        hint = f": {remedy}" if len(pixels) > 1 else ""
        raise ConversionError(f"the graph does not compute {tiles} ({last_line(str(error))}){hint}") from error
    expected = (len(pixels), len(contract.classes))
    if given.shape != expected:
        raise ConversionError(f"the graph gives {given.shape} for {tiles}, expected {expected}: {remedy}")
    if not np.isfinite(given).all():
        raise ConversionError(
            "the graph's answers are not all numbers, but NaN or infinite: look at its weights, and at the mean, std "
            "and pixel_max that are stated"
        )
    return given


def raw_outputs(model: Any, statement: ImportStatement, pixels: Pixels) -> Probabilities:
    """What the graph itself gives, without a softmax behind it, `float32 (N, classes)`."""
    return answers(raw_pixel_graph(model, replace(statement, output="probabilities")), pixels)


def _opset(model: Any) -> int:
    return max(int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx"))


def _without_default_inputs(model: Any) -> Any:
    """Old exporters list each constant as an input too, whose default it is: up to IR version 3 that was the rule."""
    constants = {item.name for item in model.graph.initializer}
    kept = [item for item in model.graph.input if item.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


def _name_nodes(model: Any) -> None:
    """The records of later graphs go by the names of nodes, which ONNX does not ask for."""
    for number, node in enumerate(model.graph.node):
        if node.name in ("", PREFIX):
            node.name = f"{PREFIX}{node.op_type}_{number}"


def _give_biases(model: Any) -> None:
    """A bias of zeros to each convolution that has none: those in integers correct their rounding by it."""
    import onnx

    weights = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 2 and node.input[1] in weights:
            zeros = np.zeros(weights[node.input[1]].dims[0], np.float32)
            kind = onnx.numpy_helper.to_array(weights[node.input[1]]).dtype
            model.graph.initializer.append(onnx.numpy_helper.from_array(zeros.astype(kind), f"{node.name}/bias"))
            node.input.append(f"{node.name}/bias")


def _the_one(values: Any, what: str) -> Any:
    if len(values) != 1:
        names = ", ".join(item.name.removeprefix(PREFIX) for item in values)
        raise ConversionError(f"the graph has {len(values)} {what}s ({names}), expected one: export it with one")
    return values[0]


def _check_input(taken: Any, statement: ImportStatement) -> None:
    import onnx

    types = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8)
    tensor = taken.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if tensor.elem_type not in types:
        raise ConversionError(f"the graph takes {name}, expected FLOAT, FLOAT16 or UINT8")
    if tensor.elem_type == onnx.TensorProto.UINT8 and any(statement.input.offset + _scaled(statement)):
        raise ConversionError("the graph takes UINT8, so pixel_max, mean and std must be left out")
    height, width = statement.seen_size
    expected = (3, height, width) if statement.input.layout == "NCHW" else (height, width, 3)
    got = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim)[1:]
    # An axis without a size takes any.
    if len(got) != 3 or any(size not in (None, wanted) for size, wanted in zip(got, expected, strict=True)):
        raise ConversionError(
            f"the graph takes {tuple('?' if size is None else size for size in got)} behind the batch axis, stated is "
            f"{expected} ({statement.input.layout})"
        )


def _scaled(statement: ImportStatement) -> tuple[float, ...]:
    return tuple(scale - 1 for scale in statement.input.scale)


def _nodes_before(taken: Any, statement: ImportStatement) -> list[Any]:
    """From `tiles` to what the graph takes, whose name the last node's output gets."""
    import onnx

    helper, stated = onnx.helper, statement.input
    raw = taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    steps: list[tuple[str, list[str], dict[str, Any]]] = []
    if not raw:
        steps.append(("Cast", [], {"to": onnx.TensorProto.FLOAT}))
    if stated.crop and stated.crop != statement.contract.input_size:
        steps.append(("Slice", ["crop_starts", "crop_ends", "crop_axes"], {}))
    if stated.layout == "NCHW":
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    if stated.channel_order == "BGR":
        steps.append(("Gather", ["channels"], {"axis": 1 if stated.layout == "NCHW" else 3}))
    if not raw:
        # The scale last: a convolution can take it in, where an offset would be wrong at padded edges.
        steps += [("Add", ["offset"], {}), ("Mul", ["scale"], {})]
        if taken.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
            steps.append(("Cast", [], {"to": onnx.TensorProto.FLOAT16}))
    if not steps:
        steps = [("Identity", [], {})]
    nodes, value = [], INPUT
    for number, (kind, constants, attributes) in enumerate(steps):
        result = taken.name if number == len(steps) - 1 else f"pixels_{number}"
        nodes.append(
            helper.make_node(kind, [value, *constants], [result], name=f"pixels_{kind}_{number}", **attributes)
        )
        value = result
    return nodes


def _constants(taken: Any, statement: ImportStatement) -> list[Any]:
    import onnx

    stated = statement.input
    made: dict[str, Any] = {}
    if taken.type.tensor_type.elem_type != onnx.TensorProto.UINT8:
        shape = (1, 3, 1, 1) if stated.layout == "NCHW" else (1, 1, 1, 3)
        made["scale"] = np.array(stated.scale, np.float32).reshape(shape)
        made["offset"] = (np.array(stated.offset) / np.array(stated.scale)).astype(np.float32).reshape(shape)
    if stated.crop and stated.crop != statement.contract.input_size:
        starts = [(size - seen) // 2 for size, seen in zip(statement.contract.input_size, stated.crop, strict=True)]
        made["crop_starts"] = np.array(starts, np.int64)
        made["crop_ends"] = made["crop_starts"] + np.array(stated.crop, np.int64)
        made["crop_axes"] = np.array([1, 2], np.int64)
    if stated.channel_order == "BGR":
        made["channels"] = np.array([2, 1, 0], np.int64)
    return [onnx.numpy_helper.from_array(values, name) for name, values in made.items()]


def _nodes_behind(given: Any, statement: ImportStatement) -> list[Any]:
    import onnx

    helper, value = onnx.helper, given.name
    nodes = []
    if given.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [value], ["outputs"], name="outputs_cast", to=onnx.TensorProto.FLOAT))
        value = "outputs"
    kind = "Softmax" if statement.output == "logits" else "Identity"
    attributes = {"axis": 1} if kind == "Softmax" else {}
    return [*nodes, helper.make_node(kind, [value], [OUTPUT], name=f"{OUTPUT}_{kind}", **attributes)]
