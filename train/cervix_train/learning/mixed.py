"""Mixed precision: what is learnt from is computed in BF16; weights, the head and all that is measured stay FP32.

In stages on pixels, that is the backbone's arithmetic; where the head learns from features, those of training tiles.
BF16 has FP32's range, so that no loss needs scaling; FP16, which has not, is never taken.

Source: Micikevicius et al. 2018, "Mixed Precision Training"; Keras, "Mixed precision".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cervix_engine.gpu import Gpu, find_gpus
from cervix_engine.machine import cpu_has_bf16
from cervix_keras.start import KerasModel, load_keras

_POLICY = "mixed_bfloat16"
# NVIDIA's GPUs multiply BF16 from Ampere on.
_AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class MixedPrecision:
    """What of a training computes in BF16. Whatever it says, val and test tiles are measured in FP32.

    Attributes:
        stages: the backbone, while it learns on pixels.
        features: the features of training tiles and their copies, where OpenVINO's are near enough to Keras's.
    """

    stages: bool
    features: bool


def hardware_has_bf16() -> bool:
    """Whether what TensorFlow computes on here multiplies BF16 in hardware; elsewhere it would only be slower."""
    load_keras()
    import tensorflow as tf

    return has_bf16(find_gpus() if tf.config.list_physical_devices("GPU") else None, cpu=cpu_has_bf16())


def has_bf16(gpus: Sequence[Gpu] | None, *, cpu: bool) -> bool:
    """The rule: all GPUs must have BF16 where TensorFlow computes on GPUs, else the CPU; `gpus` is None for the CPU."""
    if gpus is None:
        return cpu
    capabilities = [tuple(map(int, gpu.compute_capability.split("."))) for gpu in gpus]
    return bool(capabilities) and min(capabilities) >= _AMPERE


@contextmanager
def mixed_precision(model: KerasModel, *, wanted: bool) -> Iterator[None]:
    """Let the backbone inside `model` compute in BF16 within the block, if `wanted`; after it, in FP32 as before."""
    layers = [layer for body in model.layers if hasattr(body, "layers") for layer in body.layers]
    before = [layer.dtype_policy for layer in layers]
    for layer in layers if wanted else ():
        layer.dtype_policy = _POLICY
    try:
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy
        # Keras keeps the compiled function, which would go on in BF16.
        model.predict_function = None
