from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result

from cervix_train.cli.audit import main
from cervix_train.learning.config import TrainConfig


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def leaking(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn tiles with a split; three training tiles lie in the test split too, under other names."""
    root = tmp_path_factory.mktemp("leaking")
    for number, path in enumerate(sorted(drawn.rglob("*.png"))):
        split = ("train", "train", "val", "test")[number // 2 % 4]
        folder = root / split / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    for number, path in enumerate(sorted((root / "train").rglob("*.png"))[:3]):
        shutil.copy(path, root / "test" / path.parent.name / f"other_{number}.png")
    return root


def test_a_planted_leak_is_named_and_counted(leaking: Path, tmp_path: Path) -> None:
    result = invoke(leaking, "--json", tmp_path / "audit.json")
    assert result.exit_code == 0, result.output
    findings = json.loads((tmp_path / "audit.json").read_text())
    jsonschema.validate(findings, json.loads(files("cervix_train").joinpath("schemas/audit.schema.json").read_text()))
    assert (findings["tiles"], findings["exact_pairs"], findings["price"]) == (63, 3, None)
    exact = [leak for leak in findings["leaks"] if leak["exact"]]
    assert {frozenset((leak["first_split"], leak["second_split"])) for leak in exact} == {frozenset(("train", "test"))}
    assert all("other_" in leak["first"] for leak in exact)
    assert findings["test_tiles_in_training"] >= 3
    assert "3 pairs are exact copies" in result.stdout
    assert result.stdout.count(": copy\n") == 3


def test_the_price_compares_random_with_grouped_splits(config: TrainConfig, drawn: Path) -> None:
    quick = ["--backbone", "cnn", "--input-size", 32, "--epochs", 2, "-b", 16, "--repeats", 2, "--cache", config.cache]
    result = invoke(drawn, "--price", *quick)
    assert result.exit_code == 0, result.output
    assert "price of the leak: test accuracy 0." in result.stdout
    assert "(2 splits of each kind)" in result.stdout


def test_wrong_inputs_give_one_line(tmp_path: Path, drawn: Path) -> None:
    missing = invoke(tmp_path / "none")
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
    rows = [f"{path.relative_to(drawn)},{path.parent.name}" for path in sorted(drawn.rglob("*.png"))[:4]]
    (tmp_path / "data").mkdir()
    shutil.copytree(drawn, tmp_path / "data", dirs_exist_ok=True)
    lines = ["path,label,split", *(f"{row},train" for row in rows[:2]), *(f"{row}," for row in rows[2:])]
    (tmp_path / "data/manifest.csv").write_text("\n".join(lines))
    mixed = invoke(tmp_path / "data")
    assert mixed.exit_code == 2
    assert "some tiles have a split and some have none" in mixed.stderr
