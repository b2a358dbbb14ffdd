"""Opens a Keras model and writes it as an ONNX graph: `python -m cervix_keras._keras_to_onnx JOB`.

It runs in a process of its own, because a Keras file is the one input of an export that can carry code: what it
does, crashes or exhausts stays out of the process that certifies and publishes. The model is opened in Keras's
safe mode only, from a bundle whose digests were checked right before.

`JOB` is the JSON form of `ConversionJob`. The last line on standard output is JSON again: `{"error": …}` or
`{"keras": version}`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cervix_engine.bundle.bundle import CONTRACT, Bundle
from cervix_engine.bundle.certificate import GATES
from cervix_engine.bundle.golden import REPLAYED, GoldenSet
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ConversionError
from cervix_keras.child import serve

KERAS_FILE = "model.keras"
INPUT, OUTPUT = "tiles", "probabilities"

# The newest that TensorRT 8.5 and all later parsers read; ResNets need nothing newer.
OPSET = 17


@dataclass(frozen=True, slots=True)
class ConversionJob:
    """What the process is asked for.

    Attributes:
        bundle: the bundle's folder.
        digest: the bundle's digest, which pins every byte that is opened.
        onnx_file: where the graph goes.
    """

    bundle: str
    digest: str
    onnx_file: str


def main(job_json: str) -> int:
    """Do one job and print its outcome as one line of JSON."""
    job = ConversionJob(**json.loads(job_json))
    return serve(lambda: convert(Bundle.open(Path(job.bundle), expect_digest=job.digest), Path(job.onnx_file)))


def convert(bundle: Bundle, onnx_file: Path) -> dict[str, str]:
    """Write the bundle's Keras model as an ONNX graph.

    Returns:
        The versions that took part.

    Raises:
        ConversionError: the file is no model that the contract describes, or cannot be converted.
    """
    import keras

    model = load(bundle.root / KERAS_FILE)
    check_signature(model, bundle.contract)
    check_golden(model, GoldenSet.load(bundle))
    onnx_file.write_bytes(_graph(model, bundle).SerializeToString())
    return {"keras": keras.__version__}


def load(keras_file: Path) -> Any:
    """Open a `.keras` archive in safe mode, uncompiled.

    Raises:
        ConversionError: Keras refuses it, for example because it holds a Lambda, or cannot read it.
    """
    import keras

    try:
        return keras.saving.load_model(keras_file, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever a layer's own code raises
        raise ConversionError(f"Keras refuses {keras_file.name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first sentence: what follows in Keras's messages is advice to switch the safe mode off."""
    sentence = " ".join(str(error).split()).split(". ")[0].removesuffix(".")
    return f"{type(error).__name__}: {sentence}"


def check_signature(model: Any, contract: ModelContract) -> None:
    """Check that a Keras model takes and gives what the contract says.

    Raises:
        ConversionError: naming got against expected.
    """
    expected = f"uint8 {(None, *contract.input_size, 3)} -> float32 {(None, len(contract.classes))}"
    got = " -> ".join(", ".join(f"{item.dtype} {tuple(item.shape)}" for item in side) for side in _sides(model))
    if got != expected:
        raise ConversionError(f"{KERAS_FILE} maps {got}, the contract says {expected}")


def _sides(model: Any) -> tuple[list[Any], list[Any]]:
    try:
        return list(model.inputs), list(model.outputs)
    except (AttributeError, TypeError) as error:
        raise ConversionError(f"{KERAS_FILE} is a {type(model).__name__} without a fixed input and output") from error


def check_golden(model: Any, golden: GoldenSet) -> None:
    """Check that the model still answers as the golden tiles record, on the first few of them.

    Raises:
        ConversionError: the golden set is another model's, or this machine computes differently.
    """
    pixels = golden.pixels(REPLAYED)
    answers = np.asarray(model(pixels, training=False))
    difference = float(np.abs(answers - golden.probabilities()[: len(pixels)]).max())
    limit = GATES["fp32"].replay_absdiff
    if not difference <= limit:
        raise ConversionError(
            f"{KERAS_FILE} answers the golden tiles differently than they record (by {difference:.3g}, limit "
            f"{limit:g}): they were made with another model; train again with cervix-train"
        )


def _graph(model: Any, bundle: Bundle) -> Any:
    """The model as an ONNX `ModelProto` from `uint8 (N, height, width, 3)` to `float32 (N, classes)`."""
    import onnx
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec((None, *bundle.contract.input_size, 3), tf.uint8, name=INPUT)]
    function = tf.function(lambda tiles: {OUTPUT: model(tiles, training=False)})
    try:
        graph, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    except Exception as error:  # the converter raises whatever its handlers raise
        raise ConversionError(f"tf2onnx cannot convert {KERAS_FILE}: {_reason(error)}") from error
    provenance = {name: bundle.files[name] for name in (CONTRACT, KERAS_FILE)}
    onnx.helper.set_model_props(graph, {f"cervix.{name}.sha256": digest for name, digest in provenance.items()})
    return graph


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
