from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.files import sha256_file
from cervix_train.cli.train import main
from cervix_train.learning.config import TrainConfig

QUICK = ["--backbone", "cnn", "--input-size", "32", "--epochs", "2", "-b", "16"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_real_process_trains_and_says_so(drawn: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-m", "cervix_train.cli.train", str(drawn), "-o", str(tmp_path / "models/mine"), *QUICK],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[:2] == [
        f"read {drawn} as one folder per class",
        "60 tiles of 5 classes (cervix_dyk 12, cervix_koc 12, cervix_mep 12, cervix_pab 12, cervix_sfi 12)",
    ]
    assert "train 40, val 10, test 10 (drawn with seed 0, groups kept whole)" in lines
    score = r"[01]\.\d{3} \(95 %: [01]\.\d{3} to [01]\.\d{3}\)"
    ending = rf"test accuracy {score}, macro F1 {score} on \d+ tiles of \d+ groups; bundle written to "
    assert re.match(ending, lines[-1]), lines[-1]
    # What takes a while is said before it begins.
    begun = ("starting Keras and building cnn", "features of 60 tiles", "head: learning from 40", "saving the model")
    announced = [next(index for index, line in enumerate(lines) if line.startswith(start)) for start in begun]
    assert announced == sorted(announced)
    # Every line is ours: nothing of TensorFlow's own log comes through.
    ours = (
        "read ",
        "train ",
        "starting Keras ",
        "60 tiles",
        "look for copies",
        "batch-norm",
        "features",
        "epoch ",
        "head: learning ",
        "head: kept ",
        "temperature ",
        "operating point, ",
        # Tiles as few as these may well have been split unevenly.
        "warning: temperature ",
        "warning: the test tiles' ECE ",
        "warning: drift of runs will not be watched: ",
        "saving ",
        "golden ",
        "test accuracy",
    )
    assert [line for line in lines if not line.startswith(ours)] == []
    assert Bundle.open(tmp_path / "models/mine").contract.input_size == (32, 32)
    assert list((tmp_path / "models/.cervix-cache/features").glob("*.sqlite3"))


def test_only_overwrite_replaces_a_bundle(drawn: Path, bundle: Path, config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    options = [drawn, "-o", out, "--cache", config.cache, *QUICK]
    shutil.copytree(bundle, out)
    before = sha256_file(out / "bundle.json")
    refused = invoke(*options)
    assert refused.exit_code == 2
    assert refused.stderr == f"error: {out} exists: give another --out, or --overwrite to replace it\n"
    assert sha256_file(out / "bundle.json") == before
    assert invoke(*options, "--seed", "5", "--overwrite").exit_code == 0
    assert sha256_file(out / "bundle.json") != before
    Bundle.open(out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such folder or manifest: "),
        (["empty"], "holds no tiles"),
        (["other"], "unknown class 'cats'"),
        (["other", "--classes", "none.json"], "is not a list of classes"),
        (["other", "--weights", "model.h5"], "expected imagenet, none, or a file named"),
        (["other", "--weights", "x.weights.h5"], "no such file"),
        (["other", "--backbone", "cnn", "--weights", "imagenet"], "there are none for the cnn backbone"),
    ],
)
def test_wrong_inputs_give_one_line_and_exit_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/cats").mkdir(parents=True)
    (tmp_path / "other/cats/a.png").touch()
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["x", "--epochs", "0"], ["x", "--input-size", "16"], ["x", "--learning-rate", "0"]]
)
def test_wrong_options_exit_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
