"""A model card says what the bundle's files say, and that the rest is unknown."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.certificate import Certificate, measure_parity
from cervix_engine.cli.card import main
from cervix_engine.contract import ModelContract, OperatingPoint, TileClass
from cervix_engine.report.card import CARD_FILE, card_sections, seal_with_card
from cervix_engine.report.card_text import Bullets, CardTable, Section, as_html, as_markdown

METRICS = {
    "schema": "cervix/metrics/1", "split": "test", "tiles": 40, "failed": 0, "groups": 11, "accuracy": 0.925,
    "accuracy_interval": [0.81, 0.975], "macro": {"precision": 0.9, "recall": 0.9, "f1": 0.915},
    "macro_f1_interval": [0.8, 0.97], "abnormal_vs_rest": None, "calibration": {"ece": 0.0321},
    "per_class": [{"name": "cervix_dyk", "precision": 0.9, "recall": 0.875, "f1": 0.9, "tiles": 20,
                   "recall_interval": [0.7, 0.95]}],
}  # fmt: skip
TRAINING = {
    "schema": "cervix/training/1", "recipe": {"backbone": "cnn", "input_size": [24, 32]}, "versions": {"keras": "3"},
    "left_out": 2, "stages": [], "environment": {},
    "distribution": {"imbalance": 1.0, "classes": [{"name": "cervix_dyk", "train": 30, "val": 9, "test": 8},
                                                   {"name": "cervix_mep", "train": 31, "val": 8, "test": 9}]},
}  # fmt: skip
COPIES = {"schema": "cervix/copies/1", "across_splits": [1, 2], "two_labels": [3]}
FOLDS = {"schema": "cervix/folds/1", "caveats": ["the backbone has seen them"]}
POINT = OperatingPoint(0.25, review_below=0.6, review_within=0.1, sensitivity=0.98)


def sealed(root: Path, contract: ModelContract, files: Mapping[str, Any]) -> Bundle:
    """A bundle of a contract and JSON files."""
    root.mkdir()
    contract.save(root / "contract.json")
    for name, data in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(data))
    return seal(root)


def card_of(bundle: Bundle) -> str:
    return as_markdown("Card", card_sections(bundle))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_trained_bundle_tells_its_data_figures_and_decisions(contract: ModelContract, tmp_path: Path) -> None:
    files = {"metrics": METRICS, "training": TRAINING, "copies": COPIES}
    decided = replace(contract, operating_point=POINT)
    card = card_of(sealed(tmp_path / "b", decided, {f"training/{name}.json": data for name, data in files.items()}))
    assert "| Dyskeratotic | 30 | 9 | 8 |" in card
    assert "| all | 61 | 17 | 17 |" in card
    assert "2 tiles could not be decoded" in card
    assert "2 pairs of tiles show one cell on both sides of the split, 1 shows one under two labels" in card
    assert "Measured on 40 tiles of 11 separate groups: the test split" in card
    assert "| accuracy | 0.925 | 0.810 to 0.975 |" in card
    assert "| Dyskeratotic | 20 | 0.900 | 0.875 | 0.700 to 0.950 |" in card
    assert "add up to 0.25 or more" in card
    assert "| input size | 24 × 32 |" in card
    assert "| height_px | 30.0 | 84.5 | 160.0 |" in card
    assert "Not known: the bundle" not in card


def test_a_cross_validation_says_what_its_figures_are_of(contract: ModelContract, tmp_path: Path) -> None:
    files = {"metrics": METRICS | {"split": "folds"}, "training": TRAINING, "folds": FOLDS}
    card = card_of(sealed(tmp_path / "b", contract, {f"training/{name}.json": data for name, data in files.items()}))
    assert "answered out of fold by a model that learnt from other groups" in card
    assert "No tile was held back from this model itself" in card
    assert "- Caveat: the backbone has seen them." in card


def test_what_no_file_says_is_unknown(contract: ModelContract, tmp_path: Path) -> None:
    card = card_of(sealed(tmp_path / "b", replace(contract, tile_statistics=()), {}))
    titles = re.findall(r"^## (.+)$", card, re.MULTILINE)
    unknown = {title for title in titles if "ot known" in card.partition(f"## {title}\n")[2].partition("\n## ")[0]}
    assert unknown == {
        "Where it comes from",
        "What it learnt from",
        "How well it does",
        "For which tiles",
        "Limits",
    }
    assert "No operating point was chosen" in card
    assert "None yet: cervix-export" in card


def test_certificates_are_listed(bundle: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bundle.root, tmp_path / "b"))
    answers = np.array([[0.6, 0.1, 0.1, 0.1, 0.1], [0.1, 0.6, 0.1, 0.1, 0.1]], np.float32)
    names = bundle.contract.class_names
    parity = measure_parity(answers, answers + np.float32(0.01), tiles=["x", "y"], class_names=names)
    known = ("model.onnx", bundle.files["model.onnx"], "onnxruntime-cpu", "1.30.0")
    certificates = (
        Certificate(*known, "fp32", "fp32", "cpu-avx2", "keras 3.15.1", parity, 99.0, passed=True),
        Certificate(*known, "bf16", "bf16", "cpu-avx2", "keras 3.15.1", parity, 99.0, passed=False),
        # Of a graph that is no longer there.
        Certificate(
            "model.onnx", "0" * 64, "openvino", "1", "fp32", "fp32", "cpu-avx2", "keras", parity, 9.0, passed=True
        ),
    )
    for item in certificates:
        (root / item.path).parent.mkdir(exist_ok=True)
        (root / item.path).write_text(json.dumps(item.to_json()))
    section = card_of(seal(root)).partition("## Certificates\n")[2].partition("\n## ")[0]
    row = "| model.onnx | onnxruntime-cpu 1.30.0 | {} | cpu-avx2 | 1.0e-02 | 100.00% of 2 | {} |"
    assert row.format("fp32", "yes") in section
    assert row.format("bf16", "NO") in section
    assert "Compared with keras 3.15.1." in section
    assert "openvino" not in section


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    classes = (TileClass("a", "<script>|alert(1)", "normal"), TileClass("b", "[x](y) *b*", "abnormal"))
    sections = card_sections(sealed(tmp_path / "b", ModelContract(classes), {}))
    card = as_markdown("Card", sections)
    row = next(line for line in card.splitlines() if "alert" in line)
    assert row == r"| a | \<script\>\|alert(1) | normal |"
    assert r"\[x\](y) \*b\*" in card
    page = as_html("Card <1>", sections)
    assert "<script" not in page
    assert "&lt;script&gt;|alert(1)" in page
    assert "<title>Card &lt;1&gt;</title>" in page


def test_both_forms_hold_the_same_words() -> None:
    sections = [Section("One", ["A line.", Bullets(["first", "second"]), CardTable(("a", "b"), [(1, "x y")])])]
    assert as_markdown("T", sections) == (
        "# T\n\n## One\n\nA line.\n\n- first\n- second\n\n| a | b |\n| --- | --- |\n| 1 | x y |\n"
    )
    page = as_html("T", sections)
    assert all(words in page for words in ("<h2>One</h2>", "<p>A line.</p>", "<li>second</li>", "<td>x y</td>"))


def test_a_bundle_can_carry_its_card(contract: ModelContract, tmp_path: Path) -> None:
    sealed(tmp_path / "b", contract, {"training/training.json": TRAINING})
    bundle = seal_with_card(tmp_path / "b")
    text = bundle.read(CARD_FILE).decode()
    assert text == as_markdown("Model card", card_sections(bundle))
    assert seal_with_card(tmp_path / "b").digest == bundle.digest


def test_the_command_prints_or_writes_it(bundle: Bundle, tmp_path: Path) -> None:
    printed = invoke(bundle.root)
    assert printed.exit_code == 0
    assert printed.stdout.startswith(f"# Model card: {bundle.root.name} ({bundle.digest[:12]})\n")
    out = tmp_path / "card.html"
    assert invoke("--model", bundle.root, "--html", "-o", out).stdout == ""
    assert out.read_text().startswith("<!doctype html>")
    again = invoke(bundle.root, "-o", out)
    assert again.exit_code == 2
    assert "pass --overwrite" in again.stderr
    assert invoke(bundle.root, "-o", out, "--overwrite").exit_code == 0
    assert out.read_text() == printed.stdout


@pytest.mark.parametrize(
    "data", [{"schema": "cervix/metrics/1"}, METRICS | {"accuracy": "high"}, {"schema": "cervix/other/1"}]
)
def test_a_malformed_file_is_one_line(data: dict[str, Any], bundle: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bundle.root, tmp_path / "b"))
    (root / "training").mkdir(exist_ok=True)
    (root / "training/metrics.json").write_text(json.dumps(data))
    seal(root)
    result = invoke(root)
    assert result.exit_code == 1
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
