"""The network: extractor → the paper's head.

    float32 (N, features) → Dense 256 ReLU → Dropout 0.25 → Dense 64 ReLU → Dropout 0.25 → Dense softmax
      → float32 (N, classes)

Extractor and head are joined by sharing layers, not by copying weights: training the head trains the model.
"""

from __future__ import annotations

from cervix_keras.start import KerasModel, load_keras

HEAD_UNITS = (256, 64)
DROPOUT = 0.25


def build_head(*, features: int, classes: int) -> KerasModel:
    """The paper's head: `float32 (N, features)` → softmax probabilities `float32 (N, classes)`."""
    keras = load_keras()
    layers = keras.layers
    inputs = keras.Input((features,), name="features")
    values = inputs
    for number, units in enumerate(HEAD_UNITS, 1):
        values = layers.Dense(units, activation="relu", name=f"dense_{number}")(values)
        values = layers.Dropout(DROPOUT, name=f"dropout_{number}")(values)
    outputs = layers.Dense(classes, activation="softmax", name="probabilities")(values)
    return keras.Model(inputs, outputs, name="head")


def join(extractor: KerasModel, head: KerasModel) -> KerasModel:
    """The whole model, raw pixels to probabilities; its layers are those of `extractor` and `head`."""
    keras = load_keras()
    values = extractor.output
    for layer in head.layers[1:]:
        values = layer(values)
    return keras.Model(extractor.input, values, name="cervix")
