"""A tiny Keras model in a bundle with drawn tiles, made once; tests that change it get a copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.calibration_tiles import write_calibration_tiles
from cervix_engine.bundle.golden import write_golden
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.values import Pixels

CONTRACT = ModelContract(classes=SIPAKMED_CLASSES, input_size=(32, 32))
TILES = 40
CALIBRATION_TILES = 24


def drawn_tiles(count: int) -> list[bytes]:
    """PNG tiles of about 40 px: an ellipse on a noisy ground, in colours far apart, no two alike."""
    random = np.random.default_rng(7)
    return [_drawn_tile(random) for _ in range(count)]


def _drawn_tile(random: np.random.Generator) -> bytes:
    height, width = (int(side) for side in random.integers(32, 56, 2))
    ground = random.integers(0, 215, 3)
    tile = random.integers(ground, ground + 40, (height, width, 3)).astype(np.uint8)
    axes = (int(random.integers(4, 14)), int(random.integers(4, 14)))
    colour = [int(value) for value in random.integers(0, 256, 3)]
    cv2.ellipse(tile, (width // 2, height // 2), axes, float(random.integers(180)), 0, 360, colour, -1)
    done, encoded = cv2.imencode(".png", tile)
    assert done
    return encoded.tobytes()


def tiny_model(**changes: Any) -> Any:
    """A convolutional network like ResNet's stem and head, with fixed weights and batch norms that do something.

    Args:
        changes: `dtype` and `size` of the input, `classes` of the output, `extra` a layer behind the input.
    """
    import keras

    keras.utils.set_random_seed(3)
    size = changes.get("size", 32)
    inputs = keras.Input((size, size, 3), dtype=changes.get("dtype", "uint8"), name="pixels")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    if "extra" in changes:
        x = changes["extra"](x)
    for filters, strides in ((32, 2), (64, 2), (128, 1)):
        x = keras.layers.Conv2D(filters, 3, strides=strides, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.25)(x)
    x = keras.layers.Dense(changes.get("classes", 5), activation="softmax", name="probabilities")(x)
    return _with_lively_statistics(keras.Model(inputs, x, name="cervix"))


def _with_lively_statistics(model: Any) -> Any:
    random = np.random.default_rng(11)
    for layer in model.layers:
        if layer.__class__.__name__ == "BatchNormalization":
            layer.set_weights([random.uniform(0.5, 1.5, value.shape) for value in layer.get_weights()])
    return model


def keras_probabilities(model: Any, pixels: Pixels) -> npt.NDArray[np.float32]:
    return np.asarray(model(pixels, training=False), np.float32)


@pytest.fixture(scope="session")
def golden_tiles() -> list[bytes]:
    return drawn_tiles(TILES)


@pytest.fixture(scope="session")
def golden_pixels(golden_tiles: list[bytes]) -> Pixels:
    return np.stack([preprocess(tile, contract=CONTRACT) for tile in golden_tiles])


@pytest.fixture(scope="session")
def keras_model(golden_pixels: Pixels) -> Any:
    """The tiny model, its head set so that it is decided about the golden tiles, and not about one class only."""
    import keras

    model = tiny_model()
    head = model.layers[-1]
    features = np.asarray(keras.Model(model.input, head.input)(golden_pixels))
    kernel, bias = head.get_weights()
    logits = features @ kernel + bias
    scale = 1.5 / logits.std(axis=0)
    head.set_weights([kernel * scale, (bias - logits.mean(axis=0)) * scale])
    return model


@pytest.fixture(scope="session")
def trained_bundle(
    tmp_path_factory: pytest.TempPathFactory, keras_model: Any, golden_tiles: list[bytes], golden_pixels: Pixels
) -> Path:
    """A bundle as training leaves it. Not to be changed: see `bundle_root`."""
    root = tmp_path_factory.mktemp("trained") / "cervix"
    root.mkdir()
    keras_model.save(root / "model.keras")
    CONTRACT.save(root / "contract.json")
    answers = keras_probabilities(keras_model, golden_pixels)
    write_golden(root, golden_tiles, labels=[None] * TILES, probabilities=answers, contract=CONTRACT)
    others = {f"{number}.png": tile for number, tile in enumerate(drawn_tiles(TILES + CALIBRATION_TILES)[TILES:])}
    write_calibration_tiles(root, others, seed=0)
    seal(root)
    return root


@pytest.fixture(scope="session")
def export_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `cervix-export` as a real process."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cervix_export.cli.export", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False)

    return run


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    trained_bundle: Path,
    export_command: Callable[..., subprocess.CompletedProcess[str]],
) -> tuple[Bundle, subprocess.CompletedProcess[str]]:
    """The bundle after `cervix-export --fp16 --int8` at the default place, and what it said. Not to be changed."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(trained_bundle, project / "models" / "cervix")
    done = export_command("--fp16", "--int8", cwd=project)
    assert done.returncode == 0, done.stderr
    return Bundle.open(project / "models" / "cervix"), done


@pytest.fixture
def bundle_root(tmp_path: Path, trained_bundle: Path) -> Path:
    """A copy of the trained bundle."""
    return Path(shutil.copytree(trained_bundle, tmp_path / "cervix"))


@pytest.fixture
def exported_root(tmp_path: Path, exported: tuple[Bundle, subprocess.CompletedProcess[str]]) -> Path:
    """A copy of the exported bundle."""
    return Path(shutil.copytree(exported[0].root, tmp_path / "exported"))
