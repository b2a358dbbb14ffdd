"""An engine is known by its own fingerprint, and runs on the machine that it was built for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.backends.tensorrt import TensorRt, TensorRtRtx
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.engine_file import (
    EngineFingerprint,
    fingerprint_path,
    fingerprint_problems,
    fingerprints_of,
    read_fingerprint,
    rebuild_command,
)
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError
from cervix_engine.files import sha256_bytes, write_json
from cervix_engine.gpu import Gpu
from cervix_engine.values import Precision
from engine.bundle.engine_marks import A10, A40, ENGINE, L4, T4, mark_of

DATA, GRAPH = b"an engine", b"a graph"
MARK = mark_of(sha256_bytes(DATA), sha256_bytes(GRAPH))
AHEAD = replace(MARK, runtime="tensorrt-rtx", gpu=None, cuda_version=None, compute_capabilities=("8.0", "8.9"))


@pytest.fixture
def bundle_of(tmp_path: Path, contract: ModelContract) -> Callable[[EngineFingerprint], Bundle]:
    """Makes a bundle with an engine and this fingerprint."""

    def make(mark: EngineFingerprint) -> Bundle:
        (tmp_path / "engines").mkdir(exist_ok=True)
        contract.save(tmp_path / "contract.json")
        (tmp_path / "model.fp16.onnx").write_bytes(GRAPH)
        (tmp_path / ENGINE).write_bytes(DATA)
        write_json(tmp_path / fingerprint_path(ENGINE), mark.to_json())
        return seal(tmp_path)

    return make


BundleOf = Callable[[EngineFingerprint], Bundle]


def test_an_engine_for_another_gpu_names_both() -> None:
    assert TensorRt().misfit(MARK, A10, "10.9.0") is None
    assert TensorRt().misfit(MARK, L4, "10.9.0") == "it was built for NVIDIA A10, here is NVIDIA L4 (8.9)"


def test_the_command_that_rebuilds_an_engine() -> None:
    command = "cervix-export a/b --fp16 --engine tensorrt --min-batch 1 --opt-batch 32 --max-batch 64"
    assert rebuild_command(Path("a/b"), MARK) == command


@pytest.mark.parametrize(("precision", "option"), [("fp32", ""), ("fp16", "--fp16 "), ("int8", "--int8 ")])
def test_the_command_builds_an_engine_of_the_same_precision(precision: Precision, option: str) -> None:
    command = rebuild_command(Path("bundle"), replace(MARK, precision=precision))
    assert command == f"cervix-export bundle {option}--engine tensorrt --min-batch 1 --opt-batch 32 --max-batch 64"


def test_a_fingerprint_of_before_there_were_integers_still_loads() -> None:
    data = {name: value for name, value in MARK.to_json().items() if name != "integer_share"}
    assert EngineFingerprint.from_json(data) == MARK


def test_an_engine_of_another_version_does_not_fit() -> None:
    assert TensorRt().misfit(MARK, A10, "10.10.0") == "it was built with tensorrt 10.9.0, here is 10.10.0"


@pytest.mark.parametrize(
    ("mark", "fitting"),
    [
        (MARK, {A10}),
        (replace(MARK, hardware_compat="same-cc"), {A10, A40}),
        (replace(MARK, hardware_compat="ampere+"), {A10, A40, L4}),
        (AHEAD, {L4}),
    ],
)
def test_an_engine_runs_where_it_was_built_for_and_nowhere_else(mark: EngineFingerprint, fitting: set[Gpu]) -> None:
    runtime = TensorRtRtx() if mark.runtime == "tensorrt-rtx" else TensorRt()
    assert {gpu for gpu in (A10, A40, L4, T4) if runtime.misfit(mark, gpu, "10.9.0") is None} == fitting


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_sha256": "0" * 64}, "is not the fingerprint of the bundle's engines/"),
        ({"source_sha256": "0" * 64}, r"was built from another model\.fp16\.onnx"),
        ({"source": "model.onnx"}, r"was built from another model\.onnx"),
    ],
)
def test_a_fingerprint_of_something_else_is_refused(bundle_of: BundleOf, change: dict[str, str], reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        read_fingerprint(bundle_of(replace(MARK, **change)), ENGINE)  # type: ignore[arg-type]


def test_an_engine_without_a_fingerprint_is_refused(bundle_of: BundleOf) -> None:
    root = bundle_of(MARK).root
    (root / fingerprint_path(ENGINE)).unlink()
    bundle = seal(root)
    with pytest.raises(ContractError, match=r"has no engines/nvidia-a10-tensorrt-fp16\.json") as caught:
        read_fingerprint(bundle, ENGINE)
    assert fingerprints_of(bundle) == {}
    assert list(fingerprint_problems(bundle)) == [str(caught.value)]


def test_a_fingerprint_that_changes_while_the_bundle_is_open_is_refused(bundle_of: BundleOf) -> None:
    bundle = bundle_of(MARK)
    assert fingerprints_of(bundle) == {ENGINE: MARK}
    path = bundle.root / fingerprint_path(ENGINE)
    path.write_text(path.read_text(encoding="utf-8").replace("10.9.0", "10.9.1"), encoding="utf-8")
    with pytest.raises(ContractError, match="was altered while the bundle was in use"):
        read_fingerprint(bundle, ENGINE)


def test_fingerprints_survive_json(validate: Callable[[str, Any], None]) -> None:
    for mark in (MARK, AHEAD):
        validate("engine", mark.to_json())
        assert EngineFingerprint.from_json(mark.to_json()) == mark


@pytest.mark.parametrize(
    "change",
    [
        {"hardware_compat": "all"},
        {"precision": "fp8"},
        {"compute_capabilities": ["sm80"]},
        {"compute_capabilities": 8},
        {"unknown": 1},
    ],
)
def test_what_is_no_fingerprint_is_a_contract_error(change: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="engine fingerprint"):
        EngineFingerprint.from_json({**MARK.to_json(), **change})
