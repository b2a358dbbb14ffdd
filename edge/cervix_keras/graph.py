"""Keras -> ONNX, and what every graph has to keep to that is made here or from it.

The graph that is accepted takes `uint8 tiles (N, height, width, 3)`, gives `float32 probabilities (N, classes)`
for any N, holds all of its data, and passes ONNX's own checker.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from cervix_engine.bundle.onnx_guard import refuse_external_data
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, ConversionError
from cervix_keras.start import KerasModel

INPUT, OUTPUT = "tiles", "probabilities"

# The newest that TensorRT 8.5 and all later parsers read; ResNets need nothing newer.
OPSET = 17


def graph_from_keras(model: KerasModel, *, output: str = OUTPUT) -> Any:
    """A Keras model as an ONNX `ModelProto` with the input `tiles`, of the model's own size, for any number of tiles.

    Raises:
        ConversionError: tf2onnx cannot convert it.
    """
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec((None, *model.input.shape[1:]), tf.uint8, name=INPUT)]
    function = tf.function(lambda tiles: {output: model(tiles, training=False)})
    try:
        graph, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    except Exception as error:  # the converter raises whatever its handlers raise
        reason = f"{type(error).__name__}: {last_line(str(error))}"
        raise ConversionError(f"tf2onnx cannot convert the {model.name} model ({reason})") from error
    return graph


def missing_converters() -> list[str]:
    """Which of the packages that a conversion needs are not installed."""
    return [name for name in ("tensorflow", "keras", "tf2onnx", "onnx") if importlib.util.find_spec(name) is None]


def check_graph(data: bytes, contract: ModelContract) -> None:
    """Check that an ONNX file takes and gives what the contract says, for any number of tiles.

    Raises:
        ConversionError: it does not, holds a reference to other files, or is no valid ONNX.
    """
    import onnx

    try:
        refuse_external_data(data)
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model, full_check=True)
    except (ContractError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"the converted graph is not valid: {last_line(str(error))}") from error
    expected = f"UINT8 {INPUT} {('N', *contract.input_size, 3)} -> FLOAT {OUTPUT} {('N', len(contract.classes))}"
    got = f"{_values(model.graph.input)} -> {_values(model.graph.output)}"
    if got != expected:
        raise ConversionError(f"the converted graph maps {got}, expected {expected}")


def last_line(text: str) -> str:
    """The last line that says something: where libraries that say much name the reason."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def _values(values: Any) -> str:
    """Type, name and shape of graph inputs or outputs; a dimension without a fixed size is `N`."""
    import onnx

    described = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_value if axis.HasField("dim_value") else "N" for axis in tensor.shape.dim)
        described.append(f"{onnx.TensorProto.DataType.Name(tensor.elem_type)} {value.name} {shape}")
    return ", ".join(described)
