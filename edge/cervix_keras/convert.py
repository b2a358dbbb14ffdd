"""Keras -> ONNX, checked: the side that starts the converting process and believes nothing it says.

The graph that is accepted takes `uint8 tiles (N, height, width, 3)`, gives `float32 probabilities (N, classes)`
for any N, holds all of its data, and passes ONNX's own checker.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.onnx_guard import refuse_external_data
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, ConversionError
from cervix_keras._keras_to_onnx import INPUT, OUTPUT, ConversionJob
from cervix_keras.child import last_line, run_job

# A ResNet-101 takes well under a minute; only a hang takes longer than this.
TIMEOUT_S = 1800

_CHILD = "cervix_keras._keras_to_onnx"


def onnx_from_keras(bundle: Bundle, onnx_file: Path, *, timeout_s: float = TIMEOUT_S) -> str:
    """Write a bundle's Keras model as an ONNX graph that does what the bundle's contract says.

    Args:
        bundle: an opened bundle with a Keras model and golden tiles.
        onnx_file: where the graph goes.
        timeout_s: how long the conversion may take.

    Returns:
        The reference, such as `keras 3.15.1`.

    Raises:
        ConversionError: the model cannot be opened safely, is not what the contract says, or cannot be converted.
    """
    job = ConversionJob(str(bundle.root.resolve()), bundle.digest, str(onnx_file.resolve()))
    outcome = run_job(_CHILD, asdict(job), what="the conversion", timeout_s=timeout_s)
    check_graph(onnx_file.read_bytes(), bundle.contract)
    return f"keras {outcome['keras']}"


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


def _values(values: Any) -> str:
    """Type, name and shape of graph inputs or outputs; a dimension without a fixed size is `N`."""
    import onnx

    described = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_value if axis.HasField("dim_value") else "N" for axis in tensor.shape.dim)
        described.append(f"{onnx.TensorProto.DataType.Name(tensor.elem_type)} {value.name} {shape}")
    return ", ".join(described)
