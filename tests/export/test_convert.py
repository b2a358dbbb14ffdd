"""Keras -> ONNX: same answers, the promised signature, and a plain reason where there is none."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from cervix_engine.backends import Combination, open_backend
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import ContractError, ConversionError
from cervix_engine.values import Pixels
from cervix_keras._jobs import check_golden
from cervix_keras.graph import check_graph
from cervix_keras.jobs import onnx_from_keras
from cervix_keras.model_file import check_signature, load_model

from .conftest import CONTRACT, keras_probabilities, tiny_model

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]


def session_of(bundle: Bundle, name: str) -> Any:
    return onnxruntime.InferenceSession(bundle.read(name), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_the_graph_takes_pixels_and_gives_probabilities_for_any_number_of_tiles(exported: Exported, name: str) -> None:
    session = session_of(exported[0], name)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("tiles", "tensor(uint8)", [32, 32, 3])
    assert (given.name, given.type, given.shape[1:]) == ("probabilities", "tensor(float)", [5])
    assert not isinstance(taken.shape[0], int)
    for count in (1, 3, 17):
        (answers,) = session.run(None, {"tiles": np.full((count, 32, 32, 3), 90, np.uint8)})
        assert answers.shape == (count, 5)
        np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)


def test_the_graph_answers_as_keras_does(exported: Exported, keras_model: Any, golden_pixels: Pixels) -> None:
    expected = keras_probabilities(keras_model, golden_pixels)
    assert len(set(expected.argmax(axis=1))) > 1, "a model that always says the same proves nothing"
    (answers,) = session_of(exported[0], "model.onnx").run(None, {"tiles": golden_pixels})
    np.testing.assert_allclose(answers, expected, atol=1e-4, rtol=0)
    assert (answers.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_the_graph_says_what_it_was_made_from(exported: Exported) -> None:
    model = onnx.load_model_from_string(exported[0].read("model.onnx"))
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties["cervix.contract.json.sha256"] == exported[0].files["contract.json"]
    assert properties["cervix.model.keras.sha256"] == exported[0].files["model.keras"]


def test_the_backend_runs_the_graph(exported: Exported, golden_pixels: Pixels) -> None:
    with open_backend(exported[0], combination=Combination("onnxruntime-cpu", "fp32"), threads=1) as backend:
        answers = backend.infer(golden_pixels[:4])
    np.testing.assert_allclose(answers, GoldenSet.load(exported[0]).probabilities()[:4], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"dtype": "float32"}, r"float32 \(None, 32, 32, 3\)"),
        ({"size": 48}, r"uint8 \(None, 48, 48, 3\)"),
        ({"classes": 4}, r"float32 \(None, 4\)"),
    ],
)
def test_a_model_that_the_contract_does_not_describe_is_refused(changes: dict[str, Any], got: str) -> None:
    expected = r"its contract says uint8 \(None, 32, 32, 3\) -> float32 \(None, 5\)"
    with pytest.raises(ContractError, match=f"{got}.*{expected}"):
        check_signature(tiny_model(**changes), CONTRACT)


def test_golden_tiles_of_another_model_are_refused(trained_bundle: Path, keras_model: Any) -> None:
    golden = GoldenSet.load(Bundle.open(trained_bundle))
    check_golden(keras_model, golden)
    with pytest.raises(ConversionError, match="made with another model"):
        check_golden(tiny_model(), golden)


def test_golden_answers_that_are_not_numbers_are_refused(trained_bundle: Path, keras_model: Any) -> None:
    golden = GoldenSet.load(Bundle.open(trained_bundle))
    tiles = tuple(replace(tile, probabilities=(float("nan"),) * 5) for tile in golden.tiles)
    with pytest.raises(ConversionError, match="made with another model"):
        check_golden(keras_model, replace(golden, tiles=tiles))


def test_a_model_file_that_is_damaged_is_one_plain_reason(tmp_path: Path) -> None:
    file = tmp_path / "model.keras"
    file.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ContractError, match=r"^Keras refuses model\.keras: \w+Error: [^\n]+$"):
        load_model(file, contract=CONTRACT)


def test_the_child_opens_only_the_bundle_that_the_parent_checked(bundle_root: Path, tmp_path: Path) -> None:
    bundle = replace(Bundle.open(bundle_root), digest="0" * 64)
    with pytest.raises(ConversionError, match=f"expected {'0' * 64}"):
        onnx_from_keras(bundle, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_conversion_that_hangs_is_stopped(bundle_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"within 0\.05 s"):
        onnx_from_keras(Bundle.open(bundle_root), tmp_path / "model.onnx", timeout_s=0.05)


def test_a_lambda_is_refused_in_safe_mode(bundle_root: Path, tmp_path: Path) -> None:
    import keras

    evil = tmp_path / "evil"
    place = str(evil)
    layer = keras.layers.Lambda(lambda x: Path(place).write_text("ran") and x, output_shape=(32, 32, 3))
    tiny_model(extra=layer).save(bundle_root / "model.keras")
    evil.unlink(missing_ok=True)  # building the model ran the layer here
    with pytest.raises(ConversionError, match=r"^Keras refuses model\.keras: [^\n]*Lambda[^\n]*$") as caught:
        onnx_from_keras(seal(bundle_root), tmp_path / "model.onnx")
    assert "safe_mode=False" not in str(caught.value)
    assert not evil.exists()


def test_keras_settings_of_the_user_do_not_reach_the_conversion(
    bundle_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float64"}')
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    bundle = Bundle.open(bundle_root)
    onnx_from_keras(bundle, tmp_path / "model.onnx")
    pixels, expected = GoldenSet.load(bundle).pixels(4), GoldenSet.load(bundle).probabilities()[:4]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"tiles": pixels})[0], expected, atol=1e-4, rtol=0)
    assert [path.name for path in tmp_path.glob("keras*")] == ["keras.json"]


def altered_graph(exported: Exported, alter: Any) -> bytes:
    model = onnx.load_model_from_string(exported[0].read("model.onnx"))
    alter(model)
    return bytes(model.SerializeToString())


def fix_batch(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8


def rename_input(model: Any) -> None:
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "tiles" else name for name in node.input]
    model.graph.input[0].name = "pixels"


def move_outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def break_a_link(model: Any) -> None:
    model.graph.node[0].input[0] = "nothing"


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (fix_batch, r"UINT8 tiles \(8, 32, 32, 3\)"),
        (rename_input, "UINT8 pixels"),
        (move_outside, "another file"),
        (break_a_link, "not valid"),
    ],
)
def test_a_graph_that_breaks_the_promise_is_refused(exported: Exported, alter: Any, reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        check_graph(altered_graph(exported, alter), CONTRACT)


def test_a_graph_for_another_contract_is_refused(exported: Exported) -> None:
    other = ModelContract(classes=SIPAKMED_CLASSES[:3], input_size=(32, 32))
    with pytest.raises(ConversionError, match=r"probabilities \('N', 5\), expected .* \('N', 3\)"):
        check_graph(exported[0].read("model.onnx"), other)
