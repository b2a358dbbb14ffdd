"""Parity on real tiles, through the whole command. The network is tiny: what is real here is decoding and resizing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.golden import write_golden
from cervix_engine.tiles.preprocess import preprocess
from cervix_export.cli.export import main

from .conftest import CONTRACT, keras_probabilities

TILES = 500


@pytest.mark.data
@pytest.mark.slow
def test_the_graph_agrees_with_keras_on_real_tiles(
    tmp_path: Path, data_root: Path, sipakmed_manifest: Path, keras_model: Any
) -> None:
    with sipakmed_manifest.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"][:TILES]
    encoded = [(data_root / row["path"]).read_bytes() for row in rows]
    answers = keras_probabilities(keras_model, np.stack([preprocess(data, contract=CONTRACT) for data in encoded]))
    assert len(set(answers.argmax(axis=1))) > 1, "a model that always says the same proves nothing"
    keras_model.save(tmp_path / "model.keras")
    CONTRACT.save(tmp_path / "contract.json")
    labels = [row["label"] for row in rows]
    write_golden(tmp_path, encoded, labels=labels, probabilities=answers, contract=CONTRACT)
    seal(tmp_path)

    result = CliRunner().invoke(main, [str(tmp_path), "--fp16", "--engine", "none"])
    assert result.exit_code == 0, result.stderr
    certificate = json.loads(Bundle.open(tmp_path).read("certificates/model.onnx.onnxruntime-cpu.fp32.json"))
    assert certificate["parity"]["tiles"] == TILES
    assert certificate["parity"]["max_absdiff"] <= 1e-4
    assert certificate["parity"]["top1_agreement"] == 1
