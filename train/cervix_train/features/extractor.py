"""The extractor: the part of the network that never learns, so that its answers are computed once per tile.

uint8 (N, H, W, 3) → Rescaling 1/255 → ResNet-101 (or a comparator) → global average pooling → float32 (N, features)
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cervix_engine.errors import BackendUnavailableError, UsageError
from cervix_engine.files import sha256_bytes
from cervix_engine.privacy import keep_out_of_home
from cervix_keras.model_file import WEIGHT_SUFFIXES, load_weights, one_line
from cervix_keras.start import KerasModel, load_keras

Backbone = Literal["resnet101", "resnet50", "mobilenetv2", "cnn"]
BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
Weights = Literal["imagenet", "none"] | Path

CNN_FILTERS = (16, 32, 64, 128)
RESIDUAL_SCALE = 0.1

_DOWNLOAD_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class _Application:
    """A network of `keras.applications`.

    Attributes:
        builder: its name there.
        file: its ImageNet weights without the top, as Keras publishes them; `{size}` is the input's.
        branch_end: of `BLOCK_add`, the batch norm that ends the residual branch is `BLOCK` and this.
        sizes: input sizes in pixels that have weights of their own; others take those of 224.
    """

    builder: str
    file: str
    branch_end: str
    sizes: tuple[int, ...] = ()

    def weights_file(self, input_size: tuple[int, int]) -> str:
        height, width = input_size
        return self.file.format(size=height if height == width and height in self.sizes else 224)


_APPLICATIONS: dict[Backbone, _Application] = {
    "resnet101": _Application("ResNet101", "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5", "_3_bn"),
    "resnet50": _Application("ResNet50", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "_3_bn"),
    "mobilenetv2": _Application(
        "MobileNetV2",
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5",
        "_project_BN",
        sizes=(96, 128, 160, 192, 224),
    ),
}


def parse_weights(value: str | None, *, backbone: Backbone) -> Weights:
    """What `--weights` means; by default ImageNet's, and none for a backbone that has no such weights.

    Raises:
        UsageError: no such file, or a file or a name that cannot hold weights for this backbone.
    """
    if value is None:
        return "imagenet" if backbone in _APPLICATIONS else "none"
    if value == "none":
        return "none"
    if value == "imagenet":
        if backbone not in _APPLICATIONS:
            raise UsageError(f"--weights imagenet: there are none for the {backbone} backbone; use none or a file")
        return "imagenet"
    if not value.endswith(WEIGHT_SUFFIXES):
        expected = " or ".join(f"*{suffix}" for suffix in WEIGHT_SUFFIXES)
        raise UsageError(f"--weights {value}: expected imagenet, none, or a file named {expected}")
    if not Path(value).is_file():
        raise UsageError(f"--weights {value}: no such file")
    return Path(value)


def build_extractor(backbone: Backbone, *, input_size: tuple[int, int], weights: Weights) -> KerasModel:
    """Build the part that never learns: `uint8 (N, H, W, 3)` → `float32 (N, features)`.

    It is still trainable when it is returned, so that batch-norm statistics can be re-estimated; freeze it with
    `extractor.trainable = False` before anything learns.

    Raises:
        BackendUnavailableError: ImageNet weights can be neither found nor downloaded.
        UsageError: the weights file does not fit the backbone.
    """
    keras = load_keras()
    shape = (*input_size, 3)
    body = _application(backbone, shape, weights) if backbone in _APPLICATIONS else _cnn(shape)
    if isinstance(weights, Path):
        load_weights(body, weights)
    pixels = keras.Input(shape, dtype="uint8", name="pixels")
    scaled = keras.layers.Rescaling(1 / 255, name="rescale")(pixels)
    return keras.Model(pixels, body(scaled), name="extractor")


def extractor_digest(extractor: KerasModel) -> str:
    """Hex SHA-256 of all weights with their places and shapes: equal digests compute equal features."""
    lines = [
        f"{variable.path} {tuple(variable.shape)} {sha256_bytes(variable.numpy().tobytes())}"
        for variable in extractor.variables
    ]
    return sha256_bytes("\n".join(lines).encode())


def _application(backbone: Backbone, shape: tuple[int, int, int], weights: Weights) -> KerasModel:
    application = _APPLICATIONS[backbone]
    build = getattr(load_keras().applications, application.builder)
    options = {"include_top": False, "input_shape": shape, "pooling": "avg", "name": backbone}
    if weights != "imagenet":
        body = build(weights=None, **options)
        _calm_residuals(body, branch_end=application.branch_end)
        return body
    try:
        _share_downloads()
        with _socket_timeout(_DOWNLOAD_TIMEOUT_S), warnings.catch_warnings():
            # MobileNetV2 warns that it takes the weights of 224 px, which fit any size.
            warnings.simplefilter("ignore", UserWarning)
            return build(weights="imagenet", **options)
    except Exception as error:  # when its download fails, Keras raises exactly this class
        raise BackendUnavailableError(
            f"--weights imagenet cannot be had: {one_line(error)}; without a network, fetch "
            f"{application.weights_file(shape[:2])} elsewhere and pass it with --weights FILE"
        ) from error


def _share_downloads() -> None:
    """Let Keras find and keep ImageNet's weights where it always does, though it reads no settings from there."""
    downloads, shared = keep_out_of_home(), Path(os.environ["KERAS_HOME"], "models")
    if downloads and downloads.parents[1].is_dir() and not shared.exists():
        with suppress(OSError):
            downloads.mkdir(parents=True, exist_ok=True)
            shared.symlink_to(downloads, target_is_directory=True)


def _calm_residuals(body: KerasModel, *, branch_end: str) -> None:
    """Let a random network's residual branches begin small, so that its blocks begin near the identity.

    ResNet-101's 33 random blocks of full strength scramble their input: a classifier on their features tells 33 % of
    unseen drawn tiles right, with this 92 % (300 tiles at 64 px). After Goyal et al. 2017, section 5.1, who begin at 0.
    """
    for layer in body.layers:
        if layer.name.endswith("_add"):
            norm = body.get_layer(layer.name.removesuffix("_add") + branch_end)
            norm.gamma.assign(norm.gamma * RESIDUAL_SCALE)


def _cnn(shape: tuple[int, int, int]) -> KerasModel:
    """A small network for tests and demos: blocks of convolution, batch norm, ReLU and pooling."""
    keras = load_keras()
    layers = keras.layers
    inputs = keras.Input(shape, name="scaled")
    values = inputs
    for number, filters in enumerate(CNN_FILTERS, 1):
        values = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{number}")(values)
        values = layers.BatchNormalization(name=f"norm_{number}")(values)
        values = layers.ReLU(name=f"relu_{number}")(values)
        values = layers.MaxPooling2D(2, name=f"pool_{number}")(values)
    return keras.Model(inputs, layers.GlobalAveragePooling2D(name="average")(values), name="cnn")


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # Behind a firewall that drops packets, a download would otherwise wait for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
