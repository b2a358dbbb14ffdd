"""The guard refuses every way in which an ONNX file can point outside itself, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.bundle import onnx_guard
from cervix_engine.bundle.onnx_guard import refuse_external_data
from cervix_engine.errors import ContractError

onnx = pytest.importorskip("onnx")
DecodeError = pytest.importorskip("google.protobuf.message").DecodeError


def plain_tensor(name: str = "weights") -> Any:
    return onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), name)


def external_tensor(location: str = "weights.bin", name: str = "weights") -> Any:
    tensor = plain_tensor(name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def model_with(tensor: Any | None = None) -> Any:
    """A model that multiplies by one initializer."""
    rows = onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["N", 2])
    answer = onnx.helper.make_tensor_value_info("answer", onnx.TensorProto.FLOAT, ["N", 3])
    product = onnx.helper.make_node("MatMul", ["rows", "weights"], ["answer"])
    graph = onnx.helper.make_graph([product], "graph", [rows], [answer], [tensor or plain_tensor()])
    return onnx.helper.make_model(graph)


def add_constant(graph: Any, **attribute: Any) -> None:
    node = graph.node.add(op_type="Constant", output=["constant"])
    node.attribute.add(**attribute)


def in_initializer(model: Any, tensor: Any) -> None:
    model.graph.initializer.append(tensor)


def in_sparse_values(model: Any, tensor: Any) -> None:
    model.graph.sparse_initializer.add(values=tensor)


def in_sparse_indices(model: Any, tensor: Any) -> None:
    model.graph.sparse_initializer.add(indices=tensor)


def in_attribute(model: Any, tensor: Any) -> None:
    add_constant(model.graph, name="value", t=tensor)


def in_attribute_list(model: Any, tensor: Any) -> None:
    add_constant(model.graph, name="values", tensors=[plain_tensor(), tensor])


def in_sparse_attribute(model: Any, tensor: Any) -> None:
    add_constant(model.graph, name="value", sparse_tensor=onnx.SparseTensorProto(values=tensor))


def in_sparse_attribute_list(model: Any, tensor: Any) -> None:
    add_constant(model.graph, name="values", sparse_tensors=[onnx.SparseTensorProto(indices=tensor)])


def in_branch(model: Any, tensor: Any) -> None:
    branch = onnx.GraphProto(name="branch", initializer=[tensor])
    outer = onnx.GraphProto(name="outer")
    outer.node.add(op_type="If").attribute.add(name="then_branch", g=branch)
    model.graph.node.add(op_type="If").attribute.add(name="else_branch", g=outer)


def in_graph_list(model: Any, tensor: Any) -> None:
    add_constant(model.graph, name="graphs", graphs=[onnx.GraphProto(initializer=[tensor])])


def in_function(model: Any, tensor: Any) -> None:
    add_constant(model.functions.add(name="function"), name="value", t=tensor)


def in_function_default(model: Any, tensor: Any) -> None:
    model.functions.add(name="function").attribute_proto.add(name="value", t=tensor)


def in_training(model: Any, tensor: Any) -> None:
    model.training_info.add().algorithm.initializer.append(tensor)


def in_training_start(model: Any, tensor: Any) -> None:
    model.training_info.add().initialization.initializer.append(tensor)


PLACES = [
    in_initializer,
    in_sparse_values,
    in_sparse_indices,
    in_attribute,
    in_attribute_list,
    in_sparse_attribute,
    in_sparse_attribute_list,
    in_branch,
    in_graph_list,
    in_function,
    in_function_default,
    in_training,
    in_training_start,
]


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_refused_in_every_place(place: Callable[[Any, Any], None]) -> None:
    model = model_with()
    place(model, plain_tensor("whole"))
    refuse_external_data(model.SerializeToString())

    place(model, external_tensor(name="elsewhere"))
    with pytest.raises(ContractError, match="another file"):
        refuse_external_data(model.SerializeToString())


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "weights.bin", "", "*/_ORT_MEM_ADDR_/*"])
def test_external_data_is_refused_wherever_it_points(location: str) -> None:
    with pytest.raises(ContractError, match="another file"):
        refuse_external_data(model_with(external_tensor(location)).SerializeToString())


def test_either_sign_of_external_data_is_enough() -> None:
    flag, entry = plain_tensor(), plain_tensor()
    flag.data_location = onnx.TensorProto.EXTERNAL
    entry.external_data.add()
    for tensor in (flag, entry):
        with pytest.raises(ContractError, match="another file"):
            refuse_external_data(model_with(tensor).SerializeToString())


def test_a_model_saved_with_external_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(model_with(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(ContractError, match="another file"):
        refuse_external_data(path.read_bytes())


def test_a_location_that_a_parser_would_truncate_to_external_is_refused() -> None:
    # 2**32 + 1 as a varint: an enum is read as 32 bits, which leaves 1.
    location = b"\x70" + b"\x81\x80\x80\x80\x10"
    tensor = plain_tensor().SerializeToString() + location
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    with pytest.raises(ContractError, match="another file"):
        refuse_external_data(b"\x3a" + bytes([len(graph)]) + graph)


def test_a_whole_model_passes_also_with_its_location_spelled_out() -> None:
    tensor = plain_tensor()
    tensor.data_location = onnx.TensorProto.DEFAULT
    refuse_external_data(model_with(tensor).SerializeToString())


def test_depth_is_no_way_around() -> None:
    inner = b"\x2a\x03\x6a\x01\x00"  # a graph with an initializer that has an external_data field
    for _ in range(3000):
        attribute = b"\x32" + _length(inner) + inner
        node = b"\x2a" + _length(attribute) + attribute
        inner = b"\x0a" + _length(node) + node
    with pytest.raises(ContractError, match="another file"):
        refuse_external_data(b"\x3a" + _length(inner) + inner)


def _length(data: bytes) -> bytes:
    out, length = bytearray(), len(data)
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an onnx model",
        b"PK\x03\x04 a zip archive",
        b"\x3a",
        b"\x3a\x05\x0a",
        b"\x38\x01",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x00\x00",
        b"\x3b\x3c",
    ],
)
def test_what_is_no_onnx_protobuf_is_a_contract_error(data: bytes) -> None:
    with pytest.raises(ContractError, match="not an ONNX protobuf"):
        refuse_external_data(data)


def test_onnx_runtimes_own_format_is_refused() -> None:
    with pytest.raises(ContractError, match="own format"):
        refuse_external_data(b"\x08\0\0\0ORTM" + bytes(64))


def test_every_truncation_is_refused_or_still_whole() -> None:
    data = model_with(external_tensor()).SerializeToString()
    for end in range(len(data)):
        with pytest.raises(ContractError):
            refuse_external_data(data[:end])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4))
def test_whatever_onnx_reads_as_external_data_is_refused(changes: list[tuple[int, int]]) -> None:
    """Damage a model that has external data: where `onnx` still reads it as such, the guard must see it too."""
    data = bytearray(model_with(external_tensor()).SerializeToString())
    for position, value in changes:
        data[position % len(data)] = value
    try:
        model = onnx.ModelProto.FromString(bytes(data))
    except DecodeError:
        model = None
    try:
        refuse_external_data(bytes(data))
    except ContractError:
        return
    assert model is None or not _has_external_data(model)


def _has_external_data(message: Any) -> bool:
    if message.DESCRIPTOR.name == "TensorProto":
        return bool(message.external_data) or message.data_location == onnx.TensorProto.EXTERNAL
    children = [value for item, value in message.ListFields() if item.message_type]
    parts = [part for value in children for part in ([value] if hasattr(value, "ListFields") else value)]
    return any(_has_external_data(part) for part in parts)


def test_the_table_names_every_field_through_which_onnx_reaches_a_tensor() -> None:
    """Compare with the installed `onnx`: a new place for tensors in a later version fails here."""
    types: dict[str, dict[int, str]] = {}
    _collect(onnx.ModelProto.DESCRIPTOR, types)
    leading = {"TensorProto"}
    while grown := {name for name, parts in types.items() if leading & set(parts.values())} - leading:
        leading |= grown
    expected = {
        name: {number: part for number, part in types[name].items() if part in leading}
        for name in leading - {"TensorProto"}
    }
    messages = [value for value in vars(onnx_guard).values() if isinstance(value, onnx_guard._Message)]
    table = {item.name: {number: part.name for number, part in item.parts.items()} for item in messages if item.parts}
    assert table == expected


def _collect(message: Any, types: dict[str, dict[int, str]]) -> None:
    if message.name not in types:
        types[message.name] = {item.number: item.message_type.name for item in message.fields if item.message_type}
        for item in message.fields:
            if item.message_type:
                _collect(item.message_type, types)
