"""Re-estimates batch-norm statistics, without which a randomly initialised frozen network is useless.

Such a network's moving mean and variance are still 0 and 1, so activations grow or vanish from block to block
and all tiles look alike at its end. The population statistics are the averages of the batch statistics over
training batches, each batch normalised by its own (Ioffe & Szegedy 2015, algorithm 2, lines 7-12; the same as
PyTorch's `torch.optim.swa_utils.update_bn`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cervix_engine.preprocess import Pixels
from cervix_train.keras_runtime import KerasModel, load_keras


def reestimate(model: KerasModel, batches: Iterable[Pixels], *, advance: Callable[[int], None]) -> None:
    """Replace all batch-norm statistics of `model`, in place, by their averages over `batches`.

    Args:
        model: trainable; its other weights stay as they are.
        batches: `uint8 (N, H, W, 3)` each, of equal size but for the last.
        advance: told the number of tiles of each batch that is done.
    """
    norms = [layer for layer in _leaves(model) if isinstance(layer, load_keras().layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    try:
        for number, pixels in enumerate(batches):
            for layer in norms:
                # new = old * n/(n+1) + batch * 1/(n+1): the running average of all batches so far.
                layer.momentum = number / (number + 1)
            model(pixels, training=True)
            advance(len(pixels))
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum


def _leaves(model: KerasModel) -> Iterator[KerasModel]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _leaves(layer)
        else:
            yield layer
