"""What was altered, or points outside of its bundle, is refused before any runtime parses a byte of it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import openvino
import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import MANIFEST, Bundle, seal
from cervix_engine.cli.batch import main as batch
from cervix_engine.errors import ContractError

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """No runtime may be given a model."""

    def parse(*_: Any, **__: Any) -> None:
        raise AssertionError("a runtime was given the model")

    monkeypatch.setattr(onnxruntime, "InferenceSession", parse)
    monkeypatch.setattr(openvino.Core, "read_model", parse)


@pytest.fixture
def tiles(tmp_path: Path, exported: Exported) -> Path:
    folder = tmp_path / "tiles"
    folder.mkdir()
    (folder / "tile.png").write_bytes(exported[0].read("golden/00000.tile"))
    return folder


def predict(root: Path, tiles: Path, *options: str) -> Result:
    out = str(tiles.parent / "preds.csv")
    return CliRunner().invoke(batch, [str(tiles), "--model", str(root), "--out", out, *options])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_the_bundle_runs_as_it_is(exported_root: Path, tiles: Path) -> None:
    """So that what follows is refused for its fault alone."""
    assert predict(exported_root, tiles, "--precision", "fp32").exit_code == 0


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
def test_a_runtime_that_is_given_the_model_is_noticed(
    no_parser: None, exported_root: Path, tiles: Path, backend: str
) -> None:
    result = predict(exported_root, tiles, "--backend", backend)
    assert "a runtime was given the model" in f"{result.exception} {result.stderr}"


def test_one_altered_byte_in_any_file_is_refused(exported_root: Path) -> None:
    bundle = Bundle.open(exported_root)
    kinds = {Path(name).suffix or name for name in bundle.files}
    assert {".json", ".keras", ".onnx", ".tile"} <= kinds
    for name in bundle.files:
        flip_a_bit(exported_root / name)
        with pytest.raises(ContractError, match="was altered") as caught:
            Bundle.open(exported_root)
        assert name in str(caught.value)
        flip_a_bit(exported_root / name)
    assert Bundle.open(exported_root).digest == bundle.digest


def test_one_altered_byte_anywhere_in_the_manifest_is_refused_where_it_is_pinned(exported_root: Path) -> None:
    digest = Bundle.open(exported_root).digest
    flip_a_bit(exported_root / MANIFEST)
    with pytest.raises(ContractError, match=f"expected {digest}"):
        Bundle.open(exported_root, expect_digest=digest)


@pytest.mark.parametrize("name", ["model.onnx", "model.keras", "contract.json", "golden/00003.tile"])
def test_a_run_on_an_altered_bundle_is_one_line(no_parser: None, exported_root: Path, tiles: Path, name: str) -> None:
    flip_a_bit(exported_root / name)
    result = predict(exported_root, tiles)
    assert result.exit_code == 1
    assert f"error: the bundle's {name} was altered" in result.stderr.splitlines()[-1]
    assert not (tiles.parent / "preds.csv").exists()


@pytest.mark.parametrize("location", ["{outside}", "../weights.bin", "link.bin", ""])
def test_a_graph_with_weights_elsewhere_is_refused_also_in_a_sealed_bundle(
    no_parser: None, exported_root: Path, tiles: Path, location: str
) -> None:
    model = onnx.load_model(exported_root / "model.onnx")
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    outside = exported_root.parent / "weights.bin"
    outside.write_bytes(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location.format(outside=outside))
    (exported_root / "model.onnx").write_bytes(model.SerializeToString())
    seal(exported_root)
    # A link cannot be sealed: it is put there afterwards, where the manifest does not list it.
    (exported_root / "link.bin").symlink_to(outside)
    result = predict(exported_root, tiles, "--precision", "fp32")
    assert result.exit_code == 1
    assert "error: the ONNX model keeps tensors in another file" in result.stderr.splitlines()[-1]
