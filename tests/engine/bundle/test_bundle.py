"""A bundle opens only if every listed file is the sealed one, and what is read later is still that."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cervix_engine import __version__
from cervix_engine.bundle.bundle import DEFAULT_BUNDLE, Bundle, default_bundle, seal
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, UsageError
from cervix_engine.files import sha256_file

Validate = Callable[[str, Any], None]
Mutants = Callable[[Any], list[tuple[str, Any]]]

FILES = ["contract.json", "golden/00000.tile", "model.keras", "model.onnx", "training/metrics.json"]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, contract: ModelContract) -> Path:
    """A sealed bundle of small files, to be copied."""
    root = tmp_path_factory.mktemp("sealed")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"the bytes of {name}".encode())
    contract.save(root / "contract.json")
    (root / "training/metrics.json").write_text('{"schema": "cervix/metrics/1", "accuracy": 0.9}')
    seal(root)
    return root


@pytest.fixture
def root(sealed: Path, tmp_path: Path) -> Path:
    """A sealed bundle that a test may spoil."""
    return Path(shutil.copytree(sealed, tmp_path / "bundle"))


def rewrite_manifest(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((root / "bundle.json").read_text())
    change(manifest)
    (root / "bundle.json").write_text(json.dumps(manifest))


def test_a_sealed_bundle_opens(root: Path, contract: ModelContract) -> None:
    bundle = Bundle.open(root)
    assert sorted(bundle.files) == FILES
    assert bundle.contract == contract
    assert bundle.digest == sha256_file(root / "bundle.json")
    assert bundle.read("model.onnx") == b"the bytes of model.onnx"
    assert "model.onnx" in bundle
    assert "model.int8.onnx" not in bundle
    assert bundle == seal(root)


def test_its_manifest_fits_the_schema(root: Path, validate: Validate) -> None:
    manifest = json.loads((root / "bundle.json").read_text())
    validate("bundle", manifest)
    assert manifest["cervix_version"] == __version__


def test_changes_of_its_manifest_are_refused(root: Path, validate: Validate, mutants: Mutants) -> None:
    manifest = json.loads((root / "bundle.json").read_text())
    # A manifest that lists fewer files is another bundle, and a valid one.
    optional = {f"without files.{name}" for name in FILES if name != "contract.json"}
    changed = [(what, document) for what, document in mutants(manifest) if what not in optional]
    assert len(changed) > 10
    for _, document in changed:
        with pytest.raises(jsonschema.ValidationError):
            validate("bundle", document)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0, -1])
def test_one_altered_byte_is_refused(root: Path, name: str, position: int) -> None:
    data = bytearray((root / name).read_bytes())
    data[position] ^= 1
    (root / name).write_bytes(data)
    with pytest.raises(ContractError, match=f"{name} was altered"):
        Bundle.open(root)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["longer", "shorter", "missing", "folder", "link", "fifo"])
def test_a_file_that_is_not_the_sealed_one_is_refused(root: Path, tmp_path: Path, name: str, change: str) -> None:
    path = root / name
    data = path.read_bytes()
    path.unlink()
    if change == "longer":
        path.write_bytes(data + b"\n")
    elif change == "shorter":
        path.write_bytes(data[:-1])
    elif change == "folder":
        path.mkdir()
    elif change == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    elif change == "fifo":
        os.mkfifo(path)
    with pytest.raises(ContractError, match=name):
        Bundle.open(root)


def test_the_pinned_digest_is_the_only_one_that_opens(root: Path) -> None:
    digest = Bundle.open(root).digest
    assert Bundle.open(root, expect_digest=digest).digest == digest
    assert Bundle.open(root, expect_digest=digest.upper()).digest == digest
    (root / "model.onnx").write_bytes(b"another model")
    assert seal(root).digest != digest
    with pytest.raises(ContractError, match=f"expected {digest}"):
        Bundle.open(root, expect_digest=digest)


def test_a_change_without_a_seal_does_not_open_and_with_one_does(root: Path) -> None:
    (root / "model.onnx").write_bytes(b"another model")
    with pytest.raises(ContractError):
        Bundle.open(root)
    assert seal(root).read("model.onnx") == b"another model"


def test_hidden_files_and_unlisted_ones_do_not_count(root: Path) -> None:
    (root / ".export.lock").write_text("")
    (root / ".cache").mkdir()
    (root / ".cache" / "engine").write_text("")
    assert sorted(seal(root).files) == FILES
    (root / "notes.txt").write_text("mine")
    bundle = Bundle.open(root)
    assert "notes.txt" not in bundle
    with pytest.raises(ContractError, match=r"no notes\.txt"):
        bundle.read("notes.txt")


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "a/../../outside",
        "/etc/hostname",
        "..",
        ".",
        "",
        "./model.onnx",
        "golden//00000.tile",
        "golden/",
        "a\0b",
    ],
)
def test_names_that_are_no_file_of_the_bundle_are_refused(root: Path, validate: Validate, name: str) -> None:
    (root.parent / "outside").write_bytes(b"not ours")
    rewrite_manifest(root, lambda manifest: manifest["files"].update({name: sha256_file(root.parent / "outside")}))
    with pytest.raises(ContractError, match=r"bundle\.json names a path"):
        Bundle.open(root)
    if "\0" not in name:
        with pytest.raises(jsonschema.ValidationError):
            validate("bundle", json.loads((root / "bundle.json").read_text()))


def test_a_name_that_the_disk_cannot_hold_is_refused(root: Path) -> None:
    rewrite_manifest(root, lambda manifest: manifest["files"].update({"\ud800": "0" * 64}))
    with pytest.raises(ContractError):
        Bundle.open(root)


def test_a_contract_that_is_not_listed_is_not_read(root: Path) -> None:
    rewrite_manifest(root, lambda manifest: manifest["files"].pop("contract.json"))
    with pytest.raises(ContractError, match=r"does not list contract\.json"):
        Bundle.open(root)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "5",
        "null",
        '{"schema": "cervix/bundle/1"}',
        '{"schema": "cervix/bundle/1", "files": []}',
        '{"files": {}}',
    ],
)
def test_a_broken_manifest_is_a_contract_error(root: Path, content: str) -> None:
    (root / "bundle.json").write_text(content)
    with pytest.raises(ContractError, match=r"bundle\.json is malformed"):
        Bundle.open(root)


def test_a_manifest_of_another_schema_is_refused(root: Path) -> None:
    rewrite_manifest(root, lambda manifest: manifest.update(schema="cervix/bundle/2"))
    with pytest.raises(ContractError, match="expected 'cervix/bundle/1'"):
        Bundle.open(root)


def test_where_there_is_no_bundle_the_user_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cervix-train"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"no bundle\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "bundle.json").mkdir()
    with pytest.raises(ContractError, match="cannot read"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("change", ["altered", "missing", "folder"])
def test_a_file_that_changes_while_the_bundle_is_open_is_refused(root: Path, change: str) -> None:
    bundle = Bundle.open(root)
    path = root / "model.onnx"
    if change == "altered":
        path.write_bytes(b"the bytes of model.onnY")
    else:
        path.unlink()
    if change == "folder":
        path.mkdir()
    with pytest.raises(ContractError, match=r"model\.onnx"):
        bundle.read("model.onnx")


def test_json_is_read_by_its_schema(root: Path) -> None:
    bundle = Bundle.open(root)
    assert bundle.read_json("training/metrics.json", schema="cervix/metrics/1")["accuracy"] == 0.9
    with pytest.raises(ContractError, match="expected the schema 'cervix/metrics/2'"):
        bundle.read_json("training/metrics.json", schema="cervix/metrics/2")
    with pytest.raises(ContractError, match="is not JSON"):
        bundle.read_json("model.onnx", schema="cervix/metrics/1")


def test_a_link_is_never_sealed_into_a_bundle(root: Path) -> None:
    before = (root / "bundle.json").read_bytes()
    (root / "link.onnx").symlink_to(root / "model.onnx")
    with pytest.raises(ContractError, match=r"link\.onnx is not a plain file"):
        seal(root)
    assert (root / "bundle.json").read_bytes() == before


def test_the_default_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERVIX_MODEL", "/models/other")
    assert default_bundle() == Path("/models/other")
    monkeypatch.setenv("CERVIX_MODEL", "")
    assert default_bundle() == DEFAULT_BUNDLE
