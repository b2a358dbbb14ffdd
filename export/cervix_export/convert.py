"""Keras -> ONNX, checked: the side that starts the converting process and believes nothing it says.

The graph that is accepted takes `uint8 tiles (N, height, width, 3)`, gives `float32 probabilities (N, classes)`
for any N, holds all of its data, and passes ONNX's own checker.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cervix_engine.bundle import Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, ConversionError
from cervix_engine.onnx_guard import refuse_external_data
from cervix_export._keras_to_onnx import INPUT, OUTPUT, ConversionJob

logger = logging.getLogger(__name__)

# A ResNet-101 takes well under a minute; only a hang takes longer than this.
TIMEOUT_S = 1800

_CHILD = "cervix_export._keras_to_onnx"
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",  # tracing needs no GPU, and TensorFlow would take all of its memory
    "KERAS_BACKEND": "tensorflow",
    "PYTHONSAFEPATH": "1",  # never import from the folder that the command happens to run in
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


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
    outcome = _run(job, timeout_s)
    check_graph(onnx_file.read_bytes(), bundle.contract)
    return f"keras {outcome['keras']}"


def _run(job: ConversionJob, timeout_s: float) -> dict[str, str]:
    command = [sys.executable, "-m", _CHILD, json.dumps(asdict(job))]
    environment = os.environ | _ENVIRONMENT
    try:
        done = subprocess.run(  # the child's exit code is part of its answer
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"the conversion did not end within {timeout_s:g} s and was stopped") from error
    logger.debug("%s", done.stderr)
    if done.returncode < 0:
        raise ConversionError(f"the conversion was ended by signal {-done.returncode}{_hint(-done.returncode)}")
    outcome = _last_json(done.stdout)
    if done.returncode or outcome is None:
        raise ConversionError((outcome or {}).get("error") or f"the conversion failed: {_last_line(done.stderr)}")
    return outcome


def _hint(number: int) -> str:
    return ", as a machine out of memory does" if number == signal.SIGKILL else ""


def _last_json(text: str) -> dict[str, str] | None:
    try:
        outcome = json.loads(_last_line(text))
    except ValueError:
        return None
    return outcome if isinstance(outcome, dict) else None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


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
        raise ConversionError(f"the converted graph is not valid: {_last_line(str(error))}") from error
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
