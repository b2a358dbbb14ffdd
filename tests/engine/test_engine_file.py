"""An engine reaches a runtime only whole, with its own fingerprint, and on the machine that it was built for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.engine_file import (
    EngineFingerprint,
    fingerprint_path,
    read_engine,
    read_fingerprint,
    rebuild_command,
)
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, EngineIncompatibleError
from cervix_engine.files import sha256_bytes, write_json
from cervix_engine.gpu import Gpu
from cervix_engine.values import Precision
from engine.engine_marks import A10, A40, ENGINE, L4, T4, mark_of

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


def test_an_engine_that_fits_is_handed_out_whole(bundle_of: BundleOf) -> None:
    assert read_engine(bundle_of(MARK), ENGINE, gpu=A10, runtime_version="10.9.0") == DATA


def test_an_engine_for_another_gpu_exits_5_with_the_command_that_rebuilds_it(bundle_of: BundleOf) -> None:
    bundle = bundle_of(MARK)
    with pytest.raises(EngineIncompatibleError) as caught:
        read_engine(bundle, ENGINE, gpu=L4, runtime_version="10.9.0")
    assert caught.value.exit_code == 5
    message = str(caught.value)
    assert "was built for NVIDIA A10, here is NVIDIA L4 (8.9)" in message
    command = f"cervix-export {bundle.root} --fp16 --engine tensorrt --min-batch 1 --opt-batch 32 --max-batch 64"
    assert message.endswith(f"rebuild it: {command}")


@pytest.mark.parametrize(("precision", "option"), [("fp32", ""), ("fp16", "--fp16 "), ("int8", "--int8 ")])
def test_the_command_builds_an_engine_of_the_same_precision(precision: Precision, option: str) -> None:
    command = rebuild_command(Path("bundle"), replace(MARK, precision=precision))
    assert command == f"cervix-export bundle {option}--engine tensorrt --min-batch 1 --opt-batch 32 --max-batch 64"


def test_a_fingerprint_of_before_there_were_integers_still_loads() -> None:
    data = {name: value for name, value in MARK.to_json().items() if name != "integer_share"}
    assert EngineFingerprint.from_json(data) == MARK


def test_an_engine_of_another_version_does_not_fit(bundle_of: BundleOf) -> None:
    with pytest.raises(EngineIncompatibleError, match=r"built with tensorrt 10\.9\.0, here is 10\.10\.0"):
        read_engine(bundle_of(MARK), ENGINE, gpu=A10, runtime_version="10.10.0")


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
    assert {gpu for gpu in (A10, A40, L4, T4) if mark.objection(gpu, "10.9.0") is None} == fitting


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
    with pytest.raises(ContractError, match=r"has no engines/nvidia-a10-tensorrt-fp16\.json"):
        read_engine(seal(root), ENGINE, gpu=A10, runtime_version="10.9.0")


@pytest.mark.parametrize("name", [ENGINE, fingerprint_path(ENGINE)])
def test_an_engine_that_changes_while_the_bundle_is_open_is_refused(bundle_of: BundleOf, name: str) -> None:
    bundle = bundle_of(MARK)
    data = bytearray((bundle.root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle.root / name).write_bytes(data)
    with pytest.raises(ContractError, match="was altered while the bundle was in use"):
        read_engine(bundle, ENGINE, gpu=A10, runtime_version="10.9.0")


def test_fingerprints_survive_json(validate: Callable[[str, Any], None]) -> None:
    for mark in (MARK, AHEAD):
        validate("engine", mark.to_json())
        assert EngineFingerprint.from_json(mark.to_json()) == mark


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": "onnx"},
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
