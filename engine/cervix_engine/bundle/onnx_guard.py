"""Refuses an ONNX file that refers to data outside itself, before any runtime parses it.

A tensor of an ONNX file may name a second file to read its values from. That file is covered by no digest, and
its path has been a way out of the model's folder more than once (`..`, absolute paths, links). A bundle's graphs
are whole, so any such reference is refused, whatever it says.

The protobuf wire format is read here directly: the engine needs no `onnx` package for it, and payloads are skipped
by their length, so that only the few thousand fields around them are looked at. Sources: protobuf.dev's "Encoding"
for the wire format, `onnx.proto` for the field numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cervix_engine.errors import ContractError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Tensor fields that point outside the file: the reference's entries, and the flag that puts it in force.
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


@dataclass(frozen=True, slots=True)
class _Message:
    """A protobuf message type: `parts` are the fields that lead to tensors, by number."""

    name: str
    parts: dict[int, _Message] = field(default_factory=dict)


_TENSOR = _Message("TensorProto")
_SPARSE = _Message("SparseTensorProto", {1: _TENSOR, 2: _TENSOR})
_ATTRIBUTE = _Message("AttributeProto", {5: _TENSOR, 10: _TENSOR, 22: _SPARSE, 23: _SPARSE})
_NODE = _Message("NodeProto", {5: _ATTRIBUTE})
_GRAPH = _Message("GraphProto", {1: _NODE, 5: _TENSOR, 15: _SPARSE})
_FUNCTION = _Message("FunctionProto", {7: _NODE, 11: _ATTRIBUTE})
_TRAINING = _Message("TrainingInfoProto", {1: _GRAPH, 2: _GRAPH})
_MODEL = _Message("ModelProto", {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION})
# An attribute can hold graphs again: bodies of If and Loop.
_ATTRIBUTE.parts.update({6: _GRAPH, 11: _GRAPH})


def refuse_external_data(data: bytes) -> None:
    """Check that an ONNX model holds all of its tensors.

    Args:
        data: the whole file. Only its fields' headers are read, no payload is copied.

    Raises:
        ContractError: a tensor refers to another file, or the data are not an ONNX model in protobuf form.
    """
    # ONNX Runtime takes bytes with this signature for its own flatbuffer format, which is not what is checked here.
    if data[4:8] == b"ORTM":
        raise ContractError("the model is in ONNX Runtime's own format, expected ONNX protobuf")
    found: set[str] = set()
    # A stack of our own: graphs nest as deep as the file says, Python's calls do not.
    pending = [(_MODEL, 0, len(data))]
    while pending:
        message, start, end = pending.pop()
        found.add(message.name)
        for number, wire_type, start_of_value, end_of_value in _fields(data, start, end):
            if message is _TENSOR:
                _check_tensor_field(data, number, start_of_value)
            elif number in message.parts:
                if wire_type != _BYTES:
                    raise _malformed(f"field {number} of {message.name} is no message")
                pending.append((message.parts[number], start_of_value, end_of_value))
    if _GRAPH.name not in found:
        raise _malformed("it holds no graph")


def _check_tensor_field(data: bytes, number: int, start: int) -> None:
    # Any location but 0 (inside) is refused, also values that ONNX does not define: a parser may truncate them to 1.
    if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and data[start : start + 1] != b"\0"):
        raise ContractError("the ONNX model keeps tensors in another file; a bundle's graphs hold all of their data")


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, start, end of the value) of one message's fields, payloads untouched."""
    position = start
    while position < end:
        key, position = _varint(data, position, end)
        number, wire_type = key >> 3, key & 7
        if not 1 <= number < 2**29:
            raise _malformed(f"field number {number}")
        if wire_type == _VARINT:
            start_of_value = position
            _, position = _varint(data, position, end)
        elif wire_type == _BYTES:
            length, start_of_value = _varint(data, position, end)
            position = start_of_value + length
        elif wire_type in (_FIXED32, _FIXED64):
            start_of_value = position
            position += 4 if wire_type == _FIXED32 else 8
        else:
            raise _malformed(f"wire type {wire_type}")
        if position > end:
            raise _malformed(f"field {number} ends outside its message")
        yield number, wire_type, start_of_value, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Read a little-endian base-128 number; return it and the position after it."""
    value = 0
    for shift in range(0, 70, 7):  # at most ten bytes, as every parser has it
        if position >= end:
            raise _malformed("it ends inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _malformed("a number of more than ten bytes")


def _malformed(what: str) -> ContractError:
    return ContractError(f"the model is not an ONNX protobuf: {what}")
