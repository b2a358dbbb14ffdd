"""What an export leaves in a bundle, takes from it and puts into it; and that it can be opened after a crash."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cervix_engine.backends.survey import certificates
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.bundle.engine_file import EngineFingerprint, engines_of, fingerprint_path, read_fingerprint
from cervix_engine.errors import ContractError, ExportError
from cervix_engine.files import sha256_bytes, write_json
from cervix_export.engines.builder import BuiltEngine
from cervix_export.engines.proof import Shares
from cervix_export.publish import CandidateBundle, is_exported, is_graph, publish, staging_folder

ENGINE = "engines/sm89-tensorrt-rtx-fp16.engine"


def core(bundle: Bundle) -> set[str]:
    return {name for name in bundle.files if not is_exported(name)}


def engine_of(bundle: Bundle, *, source: str, version: str = "1.7", data: bytes = b"engine") -> BuiltEngine:
    mark = EngineFingerprint(
        file_sha256=sha256_bytes(data),
        source=source,
        source_sha256=bundle.files[source],
        runtime="tensorrt-rtx",
        runtime_version=version,
        precision="fp16",
        half_share=1.0,
        gpu=None,
        cuda_version=None,
        compute_capabilities=("8.9",),
        hardware_compat="none",
        min_batch=1,
        opt_batch=32,
        max_batch=64,
    )
    return BuiltEngine(data, mark, Shares(1.0, 0.0, 0.0))


def put_engine(folder: Path, path: str, engine: BuiltEngine) -> None:
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(engine.data)
    write_json(folder / fingerprint_path(path), engine.fingerprint.to_json())


@pytest.fixture
def with_engine(exported_root: Path) -> Bundle:
    """An exported bundle to which another machine gave an engine, a table of its layers and certificates."""
    bundle = Bundle.open(exported_root)
    put_engine(exported_root, ENGINE, engine_of(bundle, source="model.fp16.onnx"))
    (exported_root / ENGINE.replace(".engine", ".layers.json")).write_text("{}")
    first = certificates(bundle)[0]
    of_engine = replace(first, file=ENGINE, file_sha256=sha256_bytes(b"engine"), backend="tensorrt-rtx")
    write_json(exported_root / of_engine.path, of_engine.to_json())
    return seal(exported_root)


@contextmanager
def staged(bundle: Bundle, **files: bytes) -> Iterator[CandidateBundle]:
    """The bundle with new files, named with `_` for `.`, in a staging folder."""
    with staging_folder(bundle.root) as staging:
        for name, data in files.items():
            (staging / name.replace("_", ".")).write_bytes(data)
        yield CandidateBundle.of(bundle, staging)


@pytest.mark.parametrize(
    ("name", "exported"),
    [
        ("model.onnx", True),
        ("model.fp16.onnx", True),
        ("model.int8.onnx", True),
        ("model.int8.json", True),
        ("certificates/model.onnx.onnxruntime-cpu.fp32.json", True),
        ("engines/h100-tensorrt-fp16.engine", True),
        ("model.keras", False),
        ("contract.json", False),
        ("golden/00000.tile", False),
        ("training/notes.onnx", False),
    ],
)
def test_what_exports_make_is_told_by_name(name: str, exported: bool) -> None:
    assert is_exported(name) == exported


def test_a_graph_made_anew_takes_away_what_was_made_from_the_old_one(with_engine: Bundle) -> None:
    with staged(with_engine, model_onnx=b"another graph") as candidate:
        now = publish(candidate, [])
    assert set(now.files) == core(with_engine) | {"model.onnx"}
    assert now.read("model.onnx") == b"another graph"
    left = {path.relative_to(now.root).as_posix() for path in now.root.rglob("*") if path.is_file()}
    assert {name for name in left if is_exported(name)} == {"model.onnx"}


def test_the_same_graph_made_anew_takes_nothing_away(with_engine: Bundle) -> None:
    graphs = {name.replace(".", "_"): with_engine.read(name) for name in with_engine.files if is_graph(name)}
    with staged(with_engine, **graphs) as candidate:
        assert publish(candidate, []).files == with_engine.files


def test_an_engine_goes_with_its_own_graph_alone(with_engine: Bundle) -> None:
    graphs = {name.replace(".", "_"): with_engine.read(name) for name in with_engine.files if is_graph(name)}
    with staged(with_engine, **{**graphs, "model_fp16_onnx": b"other"}) as candidate:
        now = publish(candidate, [])
    gone = set(with_engine.files) - set(now.files)
    assert {name for name in gone if "fp16" in name} == gone
    assert {ENGINE, fingerprint_path(ENGINE), ENGINE.replace(".engine", ".layers.json")} < gone
    assert not engines_of(now)
    assert {item.file for item in certificates(now)} == {"model.onnx", "model.int8.onnx", "model.int8-signed.onnx"}


def test_a_new_engine_leaves_graphs_certificates_and_other_engines(with_engine: Bundle) -> None:
    other = "engines/sm80-tensorrt-rtx-fp16.engine"
    with staging_folder(with_engine.root) as staging:
        put_engine(staging, other, engine_of(with_engine, source="model.fp16.onnx", data=b"second"))
        now = publish(CandidateBundle.of(with_engine, staging), [])
    assert now.files.items() >= with_engine.files.items()
    assert engines_of(now) == [other, ENGINE]


def test_an_engine_built_again_takes_the_place_of_the_old_one_and_of_what_was_said_about_it(
    with_engine: Bundle,
) -> None:
    with staging_folder(with_engine.root) as staging:
        put_engine(staging, ENGINE, engine_of(with_engine, source="model.fp16.onnx", data=b"rebuilt"))
        now = publish(CandidateBundle.of(with_engine, staging), [])
    assert now.read(ENGINE) == b"rebuilt"
    assert read_fingerprint(now, ENGINE).file_sha256 == sha256_bytes(b"rebuilt")
    assert ENGINE.replace(".engine", ".layers.json") not in now
    assert [item for item in certificates(now) if item.backend == "tensorrt-rtx"] == []
    assert not [name for name in now.files if name.startswith("certificates/sm89")]


def test_an_engine_of_another_version_lies_beside(with_engine: Bundle) -> None:
    same = engine_of(with_engine, source="model.fp16.onnx", data=b"again")
    assert same.path_in(with_engine) == ENGINE
    newer = engine_of(with_engine, source="model.fp16.onnx", version="1.8.0")
    assert newer.path_in(with_engine) == "engines/sm89-tensorrt-rtx-fp16-1.8.0.engine"


def test_a_certificate_replaces_its_own_kind_and_lies_beside_other_machines(with_engine: Bundle) -> None:
    before = certificates(with_engine)
    mine = replace(before[0], tiles_per_sec=1e6)
    elsewhere = [
        replace(before[0], device_class="cpu-elsewhere", tiles_per_sec=2e6),
        replace(before[0], backend_version="99.0", tiles_per_sec=3e6),
    ]
    with staged(with_engine) as candidate:
        now = publish(candidate, [mine, *elsewhere])
    assert sorted(item.tiles_per_sec for item in certificates(now))[-3:] == [1e6, 2e6, 3e6]
    assert len(certificates(now)) == len(before) + 2
    assert Certificate.from_json(json.loads(now.read(mine.path))) == mine
    assert elsewhere[0].path_beside_others in now

    again = replace(elsewhere[0], tiles_per_sec=4e6)
    with staged(now) as candidate:
        now = publish(candidate, [again])
    assert len(certificates(now)) == len(before) + 2
    assert Certificate.from_json(json.loads(now.read(again.path_beside_others))) == again


def test_what_is_certified_is_what_will_be_published(with_engine: Bundle) -> None:
    with staged(with_engine, model_onnx=b"another graph") as candidate:
        assert candidate.read("model.onnx") == b"another graph"
        assert candidate.read("contract.json") == with_engine.read("contract.json")
        assert "model.fp16.onnx" not in candidate
        assert certificates(candidate) == []


def unwritable(bundle: Bundle) -> Certificate:
    """A certificate at which publishing stops, as where the power goes out: JSON holds no NaN."""
    return replace(certificates(bundle)[0], tiles_per_sec=float("nan"))


def test_a_crash_between_files_and_manifest_leaves_a_bundle_of_what_stays(with_engine: Bundle) -> None:
    with staged(with_engine, model_onnx=b"another graph") as candidate, pytest.raises(ValueError, match="JSON"):
        publish(candidate, [unwritable(with_engine)])
    assert set(Bundle.open(with_engine.root).files) == core(with_engine)
    assert (with_engine.root / "model.onnx").exists()
    with staged(Bundle.open(with_engine.root)) as candidate:  # the next export clears what the crash left
        now = publish(candidate, [])
    assert not (now.root / "model.onnx").exists()


def test_a_crash_while_certificates_are_written_keeps_all_others(with_engine: Bundle) -> None:
    mine = unwritable(with_engine)
    with staged(with_engine) as candidate, pytest.raises(ValueError, match="JSON"):
        publish(candidate, [mine])
    assert with_engine.files.keys() - Bundle.open(with_engine.root).files.keys() == {mine.path}


def test_a_failure_between_two_files_leaves_a_bundle_without_them(exported_root: Path) -> None:
    bundle = Bundle.open(exported_root)
    with staged(bundle, model_onnx=b"one", model_fp16_onnx=b"two") as candidate:
        (candidate.staging / "model.fp16.onnx").unlink()
        with pytest.raises(FileNotFoundError):
            publish(candidate, [])
    assert set(Bundle.open(exported_root).files) == core(bundle)


def test_a_file_that_changed_meanwhile_does_not_become_part_of_the_bundle(bundle_root: Path) -> None:
    bundle = Bundle.open(bundle_root)
    (bundle_root / "contract.json").write_text("{}")
    with staged(bundle, model_onnx=b"new") as candidate, pytest.raises(ContractError, match=r"contract\.json was alt"):
        publish(candidate, [])


def test_a_stray_file_does_not_become_part_of_the_bundle(bundle_root: Path) -> None:
    bundle = Bundle.open(bundle_root)
    (bundle_root / "notes.txt").write_text("mine")
    with staged(bundle, model_onnx=b"new") as candidate:
        now = publish(candidate, [])
    assert "notes.txt" not in now
    assert (bundle_root / "notes.txt").exists()


def test_two_exports_at_once_are_one_too_many(bundle_root: Path) -> None:
    with staging_folder(bundle_root), pytest.raises(ExportError, match="another export"), staging_folder(bundle_root):
        pass


def test_a_killed_exports_leftovers_are_cleared(bundle_root: Path) -> None:
    with staging_folder(bundle_root) as staging:
        place = staging
    place.mkdir()
    (place / "model.onnx").write_bytes(b"half")
    with staging_folder(bundle_root) as staging:
        assert list(staging.iterdir()) == []
    assert not place.exists()


def test_staging_never_becomes_part_of_the_bundle(exported: tuple[Bundle, subprocess.CompletedProcess[str]]) -> None:
    assert not [name for name in exported[0].files if name.startswith(".")]
    assert not list(exported[0].root.rglob("*.tmp"))
