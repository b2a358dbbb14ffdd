"""A model that somebody else trained: stated, checked on golden tiles, and then exported and run as any other."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.contract import SIPAKMED_CLASSES
from cervix_engine.table.reader import Table
from cervix_export.cli.parity import main as parity
from export.imported.import_command import invoke

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "draw_onnx_model.py"
TILES = 40


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("cervix_engine").joinpath(f"schemas/{name}.schema.json").read_text())
    return found


@pytest.fixture(scope="session")
def example() -> ModuleType:
    """The worked example of docs/import.md."""
    spec = importlib.util.spec_from_file_location("draw_onnx_model", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def brought(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the example makes. Read only."""
    out = tmp_path_factory.mktemp("brought")
    result = CliRunner().invoke(example.main, [str(out), "--tiles", str(TILES)])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def imported(brought: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's bundle, imported by a real process in which there is no TensorFlow. Read only."""
    out = tmp_path_factory.mktemp("imported") / "bundle"
    arguments = [brought / "model.onnx", "--contract", brought / "contract.json", "--golden", brought / "tiles"]
    arguments += ["--expected", brought / "expected.csv", "-o", out]
    without = "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; "
    code = f"{without}from cervix_export.cli.import_model import main; main({[str(item) for item in arguments]!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "answers as expected: up to " in done.stdout
    assert f"on {TILES} tiles, 100.0% of the classes equal" in done.stdout
    assert f"of {TILES} labelled tiles right" in done.stdout
    assert "not checked" not in done.stdout
    return out


def test_the_record_says_what_was_stated_and_checked(imported: Path, brought: Path) -> None:
    record = Bundle.open(imported).read_json("import.json", schema="cervix/imported/1")
    jsonschema.validate(record, schema("imported"))
    jsonschema.validate(record["stated"], schema("import"))
    assert record["stated"] == json.loads((brought / "contract.json").read_text())
    assert record["expected"]["max_absdiff"] < 1e-4
    assert record["not_checked"] == []
    card = Bundle.open(imported).read("MODEL_CARD.md").decode()
    assert "Imported from model.onnx" in card
    assert "Not known: which tiles it learnt from" in card
    assert f"of {TILES} labelled golden tiles are answered right" in card


def test_golden_answers_are_the_pipelines_own(imported: Path, brought: Path) -> None:
    golden = GoldenSet.load(Bundle.open(imported))
    rows = list(csv.DictReader((brought / "expected.csv").read_text().splitlines()))
    expected = {(brought / "tiles" / row["path"]).read_bytes(): row for row in rows}
    assert len(golden.tiles) == TILES
    assert str(golden.reference).startswith("onnxruntime ")
    for tile in golden.tiles:
        row = expected[golden.bundle.read(tile.file)]
        wanted = [float(row[f"prob_{item.name}"]) for item in SIPAKMED_CLASSES]
        assert np.allclose(tile.probabilities, wanted, atol=1e-4)
        assert tile.label == row["label"]


def test_it_is_exported_certified_and_run_as_any_other(
    imported: Path,
    brought: Path,
    tmp_path: Path,
    export_command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    from cervix_engine.cli.batch import main as batch

    root = Path(shutil.copytree(imported, tmp_path / "bundle"))
    done = export_command("--model", root, "--fp16")
    assert done.returncode == 0, done.stderr
    bundle = Bundle.open(root)
    assert bundle.files["model.onnx"] == Bundle.open(imported).files["model.onnx"]
    assert "model.fp16.onnx" in bundle
    assert "certificates/model.onnx.onnxruntime-cpu.fp32.json" in bundle
    table = tmp_path / "preds.csv"
    run = CliRunner().invoke(batch, [str(brought / "tiles"), "--model", str(root), "-o", str(table), "-q"])
    assert run.exit_code == 0, run.output
    rows = {row["path"]: row for row in csv.DictReader((brought / "expected.csv").read_text().splitlines())}
    for row in Table.open(table).rows():
        wanted = [float(rows[row.path][f"prob_{item.name}"]) for item in SIPAKMED_CLASSES]
        assert np.allclose(row.probabilities, wanted, atol=0.02)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("".join(["path,label\n", *(f"tiles/{name},{row['label']}\n" for name, row in rows.items())]))
    (tmp_path / "tiles").symlink_to(brought / "tiles")
    compared = CliRunner().invoke(parity, ["--model", str(root), "--data", str(manifest)])
    assert compared.exit_code == 0, compared.output
    assert f"{TILES} tiles of manifest.csv" in compared.stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": [0, 0, 0], "std": [1, 1, 1]}, "with ImageNet's mean and std it would"),
        ({"mean": [0.3, 0.3, 0.3]}, "with ImageNet's mean and std it would"),
        ({"channel_order": "BGR"}, '"channel_order": "RGB" it would'),
        ({"pixel_max": 255}, '"pixel_max": 1 it would'),
    ],
)
def test_a_wrong_statement_is_caught_by_the_golden_tiles(
    changes: dict[str, Any], words: str, brought: Path, tmp_path: Path
) -> None:
    stated = json.loads((brought / "contract.json").read_text())
    stated["input"] |= changes
    (tmp_path / "contract.json").write_text(json.dumps(stated))
    given = ["--golden", brought / "tiles", "--expected", brought / "expected.csv", "-o", tmp_path / "out"]
    result = invoke(brought / "model.onnx", "--contract", tmp_path / "contract.json", *given)
    assert result.exit_code == 4
    assert "does not answer as expected" in result.stderr
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": "probabilities"}, 'state "output": "logits" where a softmax is to follow'),
        ({"input": {"layout": "NHWC"}}, r"stated is (64, 64, 3) (NHWC)"),
        ({"input_size": [32, 32]}, r"stated is (3, 32, 32) (NCHW)"),
        ({"resize": "bicubic"}, "tiles are resized by the engine's rule"),
        ({"colour": "RGB"}, "unknown key 'colour'"),
        ({"input": {"std": [0, 1, 1]}}, "expected positive numbers"),
        ({"schema": "cervix/import/9"}, "expected the schema 'cervix/import/1'"),
    ],
)
def test_a_statement_that_cannot_be_is_refused_without_any_answers(
    changes: dict[str, Any], words: str, brought: Path, tmp_path: Path
) -> None:
    stated = json.loads((brought / "contract.json").read_text())
    stated |= {**changes, "input": {**stated["input"], **changes.get("input", {})}}
    (tmp_path / "contract.json").write_text(json.dumps(stated))
    given = ["--golden", brought / "tiles", "-o", tmp_path / "out"]
    result = invoke(brought / "model.onnx", "--contract", tmp_path / "contract.json", *given)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_what_nobody_gave_is_said_to_be_unchecked(brought: Path, tmp_path: Path) -> None:
    given = ["--contract", brought / "contract.json", "--golden", brought / "tiles", "-o", tmp_path / "out"]
    result = invoke(brought / "model.onnx", *given)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("not checked: ") == 2
    record = Bundle.open(tmp_path / "out").read_json("import.json", schema="cervix/imported/1")
    jsonschema.validate(record, schema("imported"))
    assert (record["expected"], record["labels"], len(record["not_checked"])) == (None, None, 2)


def test_labels_that_chance_would_meet_are_a_warning(brought: Path, tmp_path: Path) -> None:
    lines = [f"tiles/{number:03d}.png,cervix_{'mep' if number % 5 else 'dyk'}" for number in range(TILES)]
    (tmp_path / "golden.csv").write_text("\n".join(["path,label", *lines]))
    (tmp_path / "tiles").symlink_to(brought / "tiles")
    given = ["--contract", brought / "contract.json", "--golden", tmp_path / "golden.csv", "-o", tmp_path / "out"]
    result = invoke(brought / "model.onnx", *given)
    assert result.exit_code == 0, result.output
    assert "warning: that is not surely more than 80.0%" in result.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [("model.h5", "HDF5"), ("model.pt", "exported to ONNX first"), ("none.onnx", "no such model")],
)
def test_other_files_are_refused(name: str, words: str, brought: Path, tmp_path: Path) -> None:
    given = ["--contract", brought / "contract.json", "--golden", brought / "tiles", "-o", tmp_path / "out"]
    result = invoke(tmp_path / name, *given)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,prob_cervix_dyk\n000.png,1\n", "no column prob_cervix_koc"),
        ("path,label\n000.png,cat\n", "unknown class 'cat'"),
        ("path,label\nother.png,cervix_dyk\n", "no such tile"),
    ],
)
def test_expectations_that_cannot_be_used_are_refused(text: str, words: str, brought: Path, tmp_path: Path) -> None:
    (tmp_path / "expected.csv").write_text(text)
    given = ["--golden", brought / "tiles", "--expected", tmp_path / "expected.csv", "-o", tmp_path / "out"]
    result = invoke(brought / "model.onnx", "--contract", brought / "contract.json", *given)
    assert result.exit_code == 2
    assert words in result.stderr


def test_calibration_tiles_are_never_golden(brought: Path, tmp_path: Path) -> None:
    given = ["--golden", brought / "tiles", "--calibration", brought / "tiles", "-o", tmp_path / "out"]
    result = invoke(brought / "model.onnx", "--contract", brought / "contract.json", *given)
    assert result.exit_code == 2
    assert "is a golden tile too" in result.stderr
