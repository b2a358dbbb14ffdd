"""The optimisers that a training may learn with, by name. Importing this loads no library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cervix_keras.start import load_keras


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One of Keras's optimisers.

    Attributes:
        keras_name: its class there.
        learning_rate: a usual one, the default.
        settings: those that differ from Keras's own.
    """

    keras_name: str
    learning_rate: float
    settings: Mapping[str, Any] = field(default_factory=dict)


OPTIMIZERS: dict[str, Optimizer] = {
    "adamax": Optimizer("Adamax", 0.002),  # the paper's
    "adam": Optimizer("Adam", 0.001),
    "adamw": Optimizer("AdamW", 0.001),
    "nadam": Optimizer("Nadam", 0.001),
    "rmsprop": Optimizer("RMSprop", 0.001),
    # Without momentum, few would call it by this name.
    "sgd": Optimizer("SGD", 0.01, {"momentum": 0.9}),
}


def build_optimizer(name: str, *, learning_rate: float) -> Any:
    """A new Keras optimiser; `name` is one of `OPTIMIZERS`."""
    optimizer = OPTIMIZERS[name]
    return getattr(load_keras().optimizers, optimizer.keras_name)(learning_rate, **optimizer.settings)
