"""Re-estimates batch-norm statistics, without which a randomly initialised frozen network is useless.

Such a network's moving mean and variance are still 0 and 1, so activations grow or vanish from block to block
and all tiles look alike at its end. The population statistics are the averages of the batch statistics over
training batches, each batch normalised by its own (Ioffe & Szegedy 2015, algorithm 2, lines 7-12; the same as
PyTorch's `torch.optim.swa_utils.update_bn`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cervix_engine.values import Pixels
from cervix_keras.start import KerasModel, load_keras


def reestimate(model: KerasModel, batches: Iterable[Pixels], *, advance: Callable[[int], None]) -> None:
    """Replace all batch-norm statistics of `model`, in place, by their averages over `batches`.

    Args:
        model: trainable; its other weights stay as they are.
        batches: `uint8 (N, H, W, 3)` each, of equal size but for the last.
        advance: told the number of tiles of each batch that is done.
    """
    norms = [layer for layer in _leaves(model) if isinstance(layer, load_keras().layers.BatchNormalization)]
    statistics = [variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)]
    sums: list[Any] = [np.zeros(variable.shape) for variable in statistics]
    done = 0
    with _moving_statistics_are_the_batchs(norms):
        forward = _forward(model)
        for pixels in batches:
            forward(pixels)
            for total, variable in zip(sums, statistics, strict=True):
                total += variable.numpy()
            done += 1
            advance(len(pixels))
    if done:
        for variable, total in zip(statistics, sums, strict=True):
            variable.assign(total / done)


def _forward(model: KerasModel) -> Callable[[Pixels], object]:
    """The model in training mode, as a graph: run eagerly, it holds every layer's output until the end.

    A ResNet-101 at 224 px and batch 32 takes 9 GB eagerly.
    """
    import tensorflow as tf

    signature = [tf.TensorSpec((None, *model.input.shape[1:]), tf.uint8)]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def forward(pixels: Any) -> Any:
        # A sum, so that nothing of the size of an activation leaves the graph.
        return tf.reduce_sum(model(pixels, training=True))

    return forward  # type: ignore[no-any-return]


@contextmanager
def _moving_statistics_are_the_batchs(norms: list[Any]) -> Iterator[None]:
    momenta = [layer.momentum for layer in norms]
    try:
        for layer in norms:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum


def _leaves(model: KerasModel) -> Iterator[KerasModel]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _leaves(layer)
        else:
            yield layer
