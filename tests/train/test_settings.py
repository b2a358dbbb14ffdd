"""A model does not depend on the settings of who trains it: not on Keras's file, nor on variables of the libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_keras.settings import WITHOUT_EFFECT

KERAS_FILES: dict[str, dict[str, object]] = {
    "usual": {"floatx": "float32", "epsilon": 1e-07, "backend": "tensorflow", "image_data_format": "channels_last"},
    "channels first": {"image_data_format": "channels_first"},
    "doubles of another backend": {"floatx": "float64", "backend": "theano"},
    "a large epsilon": {"epsilon": 0.3, "backend": "jax", "nnx_enabled": True},
    "no floats at all": {"floatx": "bfloat16"},
}
CHANGES = {"KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "1", "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
           "TF_ENABLE_ONEDNN_OPTS": "0", "KERAS_BACKEND": "jax"}  # fmt: skip
# Fine-tuning goes through convolutions, whose kernels and data format such settings choose.
OPTIONS = ["--backbone", "cnn", "--input-size", "32", "-b", "16", "--epochs", "2", "--recipe", "paper"]
OPTIONS += ["--fine-tune-epochs", "1", "--fine-tune-rate", "0.001", "--full-precision"]


def trained(
    drawn: Path, folder: Path, *, keras: dict[str, object] | None = None, variables: dict[str, str] | None = None
) -> tuple[Bundle, str]:
    """Train as a user with such a home folder and environment does; gives the bundle and the log."""
    home = folder / "home"
    (home / ".keras").mkdir(parents=True)
    if keras is not None:
        (home / ".keras/keras.json").write_text(json.dumps(keras))
    before = sorted(home.rglob("*"))
    places = [str(drawn), "-o", str(folder / "bundle"), "--cache", str(folder / "cache")]
    environment = {name: value for name, value in os.environ.items() if name not in WITHOUT_EFFECT}
    done = subprocess.run(
        [sys.executable, "-m", "cervix_train.cli.train", *places, *OPTIONS],
        env={**environment, "HOME": str(home), **(variables or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(home.rglob("*")) == before
    return Bundle.open(folder / "bundle"), done.stderr


@pytest.fixture(scope="module")
def expected(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return trained(drawn, tmp_path_factory.mktemp("plain"))[0]


def settings_of(bundle: Bundle) -> dict[str, Any]:
    """What the training was told and did, but for when, where and by which command."""
    said: dict[str, Any] = json.loads(bundle.read("training/training.json"))
    assert said.pop("run")["seconds"] > 0
    return said


def assert_same(bundle: Bundle, expected: Bundle) -> None:
    for name in ("metrics", "calibration"):
        assert bundle.read(f"training/{name}.json") == expected.read(f"training/{name}.json")
    assert settings_of(bundle) == settings_of(expected)
    for name in ("history", "history_fine_tune"):
        assert bundle.read(f"training/{name}.csv") == expected.read(f"training/{name}.csv")


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS_FILES)
def test_keras_own_settings_change_nothing(name: str, drawn: Path, expected: Bundle, tmp_path: Path) -> None:
    assert_same(trained(drawn, tmp_path, keras=KERAS_FILES[name])[0], expected)


@pytest.mark.slow
def test_variables_that_would_change_it_have_no_effect_and_say_so(
    drawn: Path, expected: Bundle, tmp_path: Path
) -> None:
    bundle, log = trained(drawn, tmp_path, variables=CHANGES)
    assert_same(bundle, expected)
    for name in CHANGES.keys() & set(WITHOUT_EFFECT):
        assert f"warning: {name}={CHANGES[name]} has no effect here" in log


@pytest.mark.slow
def test_other_variables_of_the_libraries_are_recorded_and_no_secret_is(
    drawn: Path, expected: Bundle, tmp_path: Path
) -> None:
    secrets = {"TF_VAR_db": "s3cret", "TF_TOKEN_app_example": "s3cret", "NVIDIA_API_KEY": "s3cret", "TF_CLI_ARGS": "-x"}
    told = {"OMP_NUM_THREADS": "2", "TF_CPP_MAX_VLOG_LEVEL": "0"}
    bundle, log = trained(drawn, tmp_path, variables={**told, **secrets})
    record = bundle.read_json("training/training.json", schema="cervix/training/1")
    plain = expected.read_json("training/training.json", schema="cervix/training/1")
    assert record["environment"] == {**plain["environment"], **told}
    assert "has no effect" not in log
    assert "OMP_NUM_THREADS" in bundle.read("training/report.html").decode()
