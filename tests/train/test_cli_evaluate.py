from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import seal
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_keras.start import load_keras
from cervix_train.cli.evaluate import main
from cervix_train.training.train import TrainReport

TILES = 60  # in the fixture `drawn`


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def metrics_of(path: Path) -> dict[str, Any]:
    metrics = json.loads(path.read_text())
    jsonschema.validate(metrics, json.loads(files("cervix_train").joinpath("schemas/metrics.schema.json").read_text()))
    return dict(metrics)


def test_a_real_process_prints_a_table_and_writes_json(bundle: Path, drawn: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cervix_train.cli.evaluate", bundle, drawn, "--json", tmp_path / "m.json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(item.name in done.stdout for item in SIPAKMED_CLASSES)
    metrics = metrics_of(tmp_path / "m.json")
    assert (metrics["tiles"], metrics["failed"], metrics["split"]) == (TILES, 0, "all")
    assert f"accuracy {metrics['accuracy']:.4f} (" in done.stdout
    assert "missed of cervix_dyk: " in done.stdout
    assert "ECE " in done.stdout
    first, second = done.stderr.splitlines()
    assert first.startswith("warning: the model was trained on ")
    assert second.startswith("evaluation: 60 tiles")


def test_the_bundle_remembers_its_test_split(bundle: Path, drawn: Path, report: TrainReport, tmp_path: Path) -> None:
    result = invoke("--model", bundle, drawn, "--split", "test", "--json", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    metrics = metrics_of(tmp_path / "m.json")
    # Features and whole model compute the same in another order, so the last digits may differ.
    trained = json.loads(json.dumps(report.metrics.to_json()))
    assert metrics.pop("calibration")["nll"] == pytest.approx(trained.pop("calibration")["nll"], rel=1e-4)
    assert metrics == trained


def test_the_datas_own_split_comes_first(bundle: Path, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "data/test")
    result = invoke(bundle, tmp_path / "data", "--split", "test", "--json", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    assert metrics_of(tmp_path / "m.json")["tiles"] == TILES
    assert invoke(bundle, tmp_path / "data", "--split", "val").exit_code == 2


def test_the_default_model_is_the_environments(bundle: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERVIX_MODEL", str(bundle))
    assert invoke(drawn, "--split", "val").exit_code == 0


def test_a_keras_file_beside_its_contract(bundle: Path, drawn: Path, tmp_path: Path) -> None:
    for name in ("model.keras", "contract.json"):
        shutil.copy(bundle / name, tmp_path)
    result = invoke(tmp_path / "model.keras", drawn)
    assert result.exit_code == 0, result.output
    assert "digest is not checked" in result.stderr
    refused = invoke(tmp_path / "model.keras", drawn, "--split", "test")
    assert (refused.exit_code, "remembers none" in refused.stderr) == (2, True)


def test_tiles_that_cannot_be_decoded_are_counted_and_exit_3(bundle: Path, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "data")
    (tmp_path / "data/cervix_dyk/001_01.png").write_bytes(b"broken")
    result = invoke(bundle, tmp_path / "data", "--json", tmp_path / "m.json")
    assert result.exit_code == 3
    assert "left out cervix_dyk/001_01.png: unknown_format" in result.stderr
    metrics = metrics_of(tmp_path / "m.json")
    assert (metrics["tiles"], metrics["failed"]) == (TILES - 1, 1)


def one_error(result: Result, *, code: int, words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("nowhere", 2, "expected a bundle folder or a .keras file"),
        ("nowhere.keras", 2, "no such model"),
        ("empty", 2, "is not a bundle"),
        ("model.h5", 2, "HDF5 models are not opened"),
        ("alone/model.keras", 1, "cannot read the contract"),
    ],
)
def test_models_that_are_not_opened(
    model: str, code: int, words: str, bundle: Path, drawn: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone").mkdir()
    for name in ("model.h5", "alone/model.keras"):
        (tmp_path / name).write_bytes(b"x")
    result = invoke(tmp_path / model, drawn)
    if "alone" in model:
        assert "digest is not checked" in result.stderr
        assert (result.exit_code, words in result.stderr) == (code, True)
    else:
        one_error(result, code=code, words=words)


def test_an_altered_model_is_never_opened(bundle: Path, drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(bundle, out)
    with (out / "model.keras").open("ab") as file:
        file.write(b"x")
    for model in (out, out / "model.keras"):
        one_error(invoke(model, drawn), code=1, words="model.keras was altered")


def test_a_file_that_is_no_keras_model(bundle: Path, drawn: Path, tmp_path: Path) -> None:
    trained_contract = ModelContract.load(bundle / "contract.json")
    trained_contract.save(tmp_path / "contract.json")
    for data, code, words in (
        (b"not a zip", 1, "is no Keras archive"),
        (b"PK\x03\x04 and then nothing", 1, "Keras refuses model.keras: "),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), 2, "is an HDF5 file"),
    ):
        (tmp_path / "model.keras").write_bytes(data)
        seal(tmp_path)
        one_error(invoke(tmp_path, drawn), code=code, words=words)


def test_a_model_that_runs_code_of_its_own_is_not_opened(bundle: Path, drawn: Path, tmp_path: Path) -> None:
    keras = load_keras()
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    values = keras.layers.Lambda(lambda x: x, output_shape=(32, 32, 3))(inputs)
    keras.Model(inputs, values).save(tmp_path / "model.keras")
    ModelContract.load(bundle / "contract.json").save(tmp_path / "contract.json")
    seal(tmp_path)
    result = invoke(tmp_path, drawn)
    one_error(result, code=1, words="Keras refuses model.keras: ")
    assert "safe_mode=False" not in result.stderr


def test_a_model_that_does_not_fit_its_contract(bundle: Path, drawn: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / "model.keras", tmp_path)
    ModelContract(classes=SIPAKMED_CLASSES[:3], input_size=(32, 32)).save(tmp_path / "contract.json")
    seal(tmp_path)
    one_error(invoke(tmp_path, drawn), code=1, words="its contract says")


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["a", "b", "--model", "c"], ["a", "--split", "dev"]])
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr


def test_no_such_data_and_an_unwritable_json(bundle: Path, drawn: Path, tmp_path: Path) -> None:
    one_error(invoke(bundle, tmp_path / "none"), code=2, words="no such folder or manifest")
    result = invoke(bundle, drawn, "--json", tmp_path / "none/m.json")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: cannot write ")
