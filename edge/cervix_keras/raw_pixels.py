"""Brings a Keras model that somebody else trained to raw pixels: layers of what is stated of it, put around it.

uint8 pixels (N, H, W, 3) → centre crop → order of channels → · scale + offset → layout → the model
  → softmax, of logits → float32 probabilities (N, classes)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cervix_engine.bundle.imported import ImportStatement
from cervix_engine.errors import ContractError
from cervix_keras.model_file import check_signature, open_archive
from cervix_keras.start import KerasModel, load_keras

# By this name of a layer, a wrapped model is known again.
_RESCALE = "stated_scale"


def raw_pixel_model(path: Path, statement: ImportStatement) -> KerasModel:
    """Open a `.keras` file in safe mode, and put what is stated around it; one that takes raw pixels stays as it is.

    Raises:
        UsageError: it is an HDF5 file, whatever its name.
        ContractError: it is no Keras archive, Keras refuses it, or it is not what is stated.
    """
    model = open_archive(path)
    if statement.input.is_raw and statement.output == "probabilities" and _takes_bytes(model):
        check_signature(model, statement.contract, name=path.name)
        return model
    _check_input(model, statement, name=path.name)
    wrapped = _wrapped(model, statement)
    check_signature(wrapped, statement.contract, name=path.name)
    return wrapped


def is_wrapped(model: KerasModel) -> bool:
    """Whether layers were put around a model, the last of which gives probabilities."""
    return any(layer.name == _RESCALE for layer in model.layers)


def _takes_bytes(model: KerasModel) -> bool:
    return all(str(item.dtype) == "uint8" for item in getattr(model, "inputs", None) or [])


def _check_input(model: KerasModel, statement: ImportStatement, *, name: str) -> None:
    height, width = statement.seen_size
    expected = (3, height, width) if statement.input.layout == "NCHW" else (height, width, 3)
    taken: list[Any] = list(getattr(model, "inputs", None) or [])
    got = tuple(taken[0].shape[1:]) if len(taken) == 1 else None
    # An axis without a size takes any.
    fits = got is not None and len(got) == 3
    if not fits or any(size not in (None, wanted) for size, wanted in zip(got or (), expected, strict=True)):
        raise ContractError(f"{name} takes {got or len(taken)}, stated is {expected} ({statement.input.layout})")


def _wrapped(model: KerasModel, statement: ImportStatement) -> KerasModel:
    keras, stated = load_keras(), statement.input
    layers = keras.layers
    pixels = keras.Input((*statement.contract.input_size, 3), dtype="uint8", name="pixels")
    values = pixels
    if stated.crop:
        values = layers.CenterCrop(*stated.crop, name="crop")(values)
    if stated.channel_order == "BGR":
        # Not `flip`, for which tf2onnx takes an operator that TensorRT does not know.
        values = keras.ops.take(values, [2, 1, 0], axis=-1)
    values = layers.Rescaling(list(stated.scale), offset=list(stated.offset), name=_RESCALE)(values)
    if stated.layout == "NCHW":
        values = layers.Permute((3, 1, 2), name="channels_first")(values)
    outputs = model(values)
    last = layers.Softmax if statement.output == "logits" else layers.Activation
    arguments = () if statement.output == "logits" else ("linear",)
    return keras.Model(pixels, last(*arguments, name="probabilities", dtype="float32")(outputs), name="cervix")
