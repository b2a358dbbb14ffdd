"""A plain Keras model is imported as an ONNX file is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.bundle.imported import ImportStatement, StatedInput
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from export.imported.import_command import invoke


@pytest.fixture(scope="module")
def plain_keras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Keras model of somebody else: BGR floats of 24 px in, logits out; and what is stated of it."""
    import keras

    keras.utils.set_random_seed(1)
    inputs = keras.Input((24, 24, 3))
    values = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    values = keras.layers.GlobalAveragePooling2D()(values)
    folder = tmp_path_factory.mktemp("plain")
    keras.Model(inputs, keras.layers.Dense(5)(values)).save(folder / "theirs.keras")
    contract = ModelContract(SIPAKMED_CLASSES, input_size=(32, 32))
    stated = StatedInput("NHWC", "BGR", 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (24, 24))
    (folder / "contract.json").write_text(json.dumps(ImportStatement(contract, stated, "logits").to_json()))
    return folder


def test_a_plain_keras_model_is_imported(plain_keras: Path, golden_tiles: list[bytes], tmp_path: Path) -> None:
    import keras

    (tmp_path / "tiles").mkdir()
    for number, tile in enumerate(golden_tiles[:12]):
        (tmp_path / "tiles" / f"{number:02d}.png").write_bytes(tile)
    given = ["--contract", plain_keras / "contract.json", "--golden", tmp_path / "tiles", "-o", tmp_path / "bundle"]
    result = invoke(plain_keras / "theirs.keras", *given)
    assert result.exit_code == 0, result.output
    assert "warning: certificates will rest on 12 golden tiles alone" in result.stdout
    bundle = Bundle.open(tmp_path / "bundle")
    golden = GoldenSet.load(bundle)
    assert str(golden.reference).startswith("keras ")
    theirs = keras.saving.load_model(plain_keras / "theirs.keras", compile=False)
    seen = golden.pixels()[:, 4:28, 4:28, ::-1].astype(np.float32) / 255
    mean, std = (np.array(values, np.float32) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    logits = np.asarray(theirs((seen - mean) / std))
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert np.allclose(golden.probabilities(), raised / raised.sum(axis=1, keepdims=True), atol=1e-5)
    # It is a Keras reference like a trained one: opened in safe mode, raw pixels in.
    own = keras.saving.load_model(bundle.root / "model.keras", safe_mode=True)
    assert (own.inputs[0].dtype, own.input_shape) == ("uint8", (None, 32, 32, 3))


def test_a_keras_model_without_its_softmax_is_caught(
    plain_keras: Path, golden_tiles: list[bytes], tmp_path: Path
) -> None:
    stated = json.loads((plain_keras / "contract.json").read_text()) | {"output": "probabilities"}
    (tmp_path / "contract.json").write_text(json.dumps(stated))
    (tmp_path / "tile.png").write_bytes(golden_tiles[0])
    given = ["--contract", tmp_path / "contract.json", "--golden", tmp_path, "-o", tmp_path / "bundle"]
    result = invoke(plain_keras / "theirs.keras", *given)
    assert result.exit_code == 1
    assert 'state "output": "logits"' in result.stderr
    assert not (tmp_path / "bundle").exists()
