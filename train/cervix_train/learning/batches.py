"""What a stage learns from, and how Keras is given it: batch by batch, in an order that each epoch sets anew.

*Features* lie in memory. TensorFlow gathers them itself and runs many steps a call: a step of the head takes about a
millisecond, and Python between two of them would take as long again. *Pixels* are decoded when they are wanted, a
batch at a time: all of a data set's would not fit into memory, and a step on them takes seconds anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cervix_keras.start import load_keras

Features = npt.NDArray[np.float32]
Targets = npt.NDArray[np.intp]
Indices = npt.NDArray[np.intp]
# Indices of some tiles -> what the model is given of them.
Inputs = Callable[[Indices], npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Batches:
    """Inputs and one-hot targets as Keras takes them; the last batch may be smaller.

    Attributes:
        data: a Keras or TensorFlow data set.
        tiles: how many there are.
        reorder: told in which order the next epoch is to see the tiles; until then it is their own.
    """

    data: Any
    tiles: int
    reorder: Callable[[Indices], None]


@dataclass(frozen=True, slots=True)
class LabelledInputs:
    """What a model learns from: `inputs(indices)` gives its inputs, `targets` are `intp (N,)`.

    Attributes:
        steps_per_execution: steps that Keras takes between two looks at Python.
    """

    inputs: Inputs
    targets: Targets
    steps_per_execution: ClassVar[int] = 1

    def batches(self, *, classes: int, batch_size: int) -> Batches:
        """Each batch as it is wanted."""
        one_hot, order, inputs = _one_hot(self.targets, classes), np.arange(len(self.targets)), self.inputs

        class Stream(load_keras().utils.PyDataset):  # type: ignore[misc]
            def __len__(self) -> int:
                return math.ceil(len(order) / batch_size)

            def __getitem__(self, number: int) -> tuple[npt.NDArray[Any], Features]:
                chosen = order[number * batch_size : (number + 1) * batch_size]
                return inputs(chosen), one_hot[chosen]

        def reorder(wanted: Indices) -> None:
            order[:] = wanted

        return Batches(Stream(), len(order), reorder)


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """Features `float32 (N, features)` and the index of each one's class, `intp (N,)`.

    Attributes:
        steps_per_execution: as `LabelledInputs`; few enough that Ctrl-C is answered within a second.
    """

    vectors: Features
    targets: Targets
    steps_per_execution: int = 256

    def inputs(self, indices: Indices) -> Features:
        return self.vectors[indices]

    def batches(self, *, classes: int, batch_size: int) -> Batches:
        """All in memory, once more; gathered without Python."""
        import tensorflow as tf

        # Where there is a GPU, TensorFlow would put these there, and every batch would come back to be gathered.
        with tf.device("CPU:0"):
            vectors, one_hot = tf.constant(self.vectors), tf.constant(_one_hot(self.targets, classes))
            order = tf.Variable(np.arange(len(self.targets)), trainable=False)

        def gather(number: Any) -> tuple[Any, Any]:
            chosen = order[number * batch_size : (number + 1) * batch_size]
            return tf.gather(vectors, chosen), tf.gather(one_hot, chosen)

        tiles = len(self.targets)
        data = tf.data.Dataset.range(math.ceil(tiles / batch_size)).map(gather).prefetch(2)
        return Batches(data, tiles, order.assign)


Labelled = LabelledInputs | LabelledFeatures


def _one_hot(targets: Targets, classes: int) -> Features:
    return np.eye(classes, dtype=np.float32)[targets]
