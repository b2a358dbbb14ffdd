"""A repository that Triton's own schema accepts, and a client whose pixels are training's."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from cervix_engine.backends.survey import certificates
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.bundle.engine_file import EngineFingerprint, fingerprint_path
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import ContractError, OutputExistsError, UsageError
from cervix_engine.files import sha256_bytes, write_json
from cervix_export.cli.export import main
from cervix_export.triton import write_repository

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]

EXAMPLE = Path(__file__).parents[2] / "examples" / "triton_client.py"
ENGINE = "engines/nvidia-a10-tensorrt-fp16.engine"


def parsed(config: Path) -> Any:
    """A `config.pbtxt`, read by Triton's own protobuf schema."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse(config.read_text(encoding="utf-8"), schema.ModelConfig())


@pytest.fixture
def with_engine(exported_root: Path) -> Bundle:
    """A bundle with a certified engine, as a GPU machine leaves it."""
    bundle = Bundle.open(exported_root)
    mark = EngineFingerprint(
        file_sha256=sha256_bytes(b"engine"),
        source="model.fp16.onnx",
        source_sha256=bundle.files["model.fp16.onnx"],
        runtime="tensorrt",
        runtime_version="10.9.0",
        precision="fp16",
        half_share=1.0,
        gpu="NVIDIA A10",
        cuda_version="13.0",
        compute_capabilities=("8.6",),
        hardware_compat="none",
        min_batch=1,
        opt_batch=128,
        max_batch=256,
    )
    (exported_root / "engines").mkdir()
    (exported_root / ENGINE).write_bytes(b"engine")
    write_json(exported_root / fingerprint_path(ENGINE), mark.to_json())
    certificate = replace(certificates(bundle)[0], file=ENGINE, file_sha256=mark.file_sha256, backend="tensorrt")
    write_json(exported_root / certificate.path, certificate.to_json())
    return seal(exported_root)


def test_each_model_is_as_tritons_schema_wants_it(with_engine: Bundle, tmp_path: Path) -> None:
    models = write_repository(with_engine, tmp_path)
    assert [model.name for model in models] == [
        "cervix-fp32",
        "cervix-fp16",
        "cervix-int8",
        "cervix-nvidia-a10-tensorrt-fp16",
    ]
    for model in models:
        config = parsed(tmp_path / model.name / "config.pbtxt")
        assert config.name == model.name
        (taken,), (given,) = config.input, config.output
        assert (taken.name, taken.data_type, list(taken.dims)) == ("tiles", 2, [32, 32, 3])  # TYPE_UINT8
        assert (given.name, given.data_type, list(given.dims)) == ("probabilities", 11, [5])  # TYPE_FP32
        labels = (tmp_path / model.name / given.label_filename).read_text().splitlines()
        assert tuple(labels) == with_engine.contract.class_names
        assert list(config.dynamic_batching.preferred_batch_size) == [model.usual_batch]
        assert "raw pixels: uint8, 32 x 32, RGB, not scaled" in config.parameters["cervix.pixels"].string_value
        assert config.parameters["cervix.bundle_sha256"].string_value == with_engine.digest
        artefact = config.parameters["cervix.artefact"].string_value
        assert (tmp_path / model.name / "1" / model.file).read_bytes() == with_engine.read(artefact)
        assert ModelContract.load(tmp_path / model.name / "contract.json") == with_engine.contract


def test_an_engine_is_told_to_triton_with_its_own_profile(with_engine: Bundle, tmp_path: Path) -> None:
    write_repository(with_engine, tmp_path)
    config = parsed(tmp_path / "cervix-nvidia-a10-tensorrt-fp16" / "config.pbtxt")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 256)
    assert list(config.dynamic_batching.preferred_batch_size) == [128]
    (group,) = config.instance_group
    assert group.Kind.Name(group.kind) == "KIND_GPU"
    graph = parsed(tmp_path / "cervix-fp32" / "config.pbtxt")
    assert (graph.platform, graph.instance_group[0].count) == ("onnxruntime_onnx", 1)


def test_what_is_not_certified_is_left_out_and_named(with_engine: Bundle, tmp_path: Path, caplog: Any) -> None:
    root = with_engine.root
    for name in (name for name in with_engine.files if name.startswith("certificates/model.int8.onnx")):
        failed = replace(Certificate.from_json(json.loads((root / name).read_text())), passed=False)
        write_json(root / name, failed.to_json())
    mark = json.loads((root / fingerprint_path(ENGINE)).read_text())
    write_json(root / fingerprint_path(ENGINE), {**mark, "runtime": "tensorrt-rtx"})
    with caplog.at_level(logging.WARNING):
        models = write_repository(seal(root), tmp_path)
    assert [model.name for model in models] == ["cervix-fp32", "cervix-fp16"]
    assert "left out of the model repository: model.int8.onnx, of which no certificate passed" in caplog.text
    assert f"left out of the model repository: {ENGINE}, since Triton runs no tensorrt-rtx" in caplog.text
    with pytest.raises(ContractError, match="no file with a certificate that passed"):
        write_repository(replace(with_engine, files={}), tmp_path)


def test_other_bytes_become_the_next_version_and_the_same_ones_do_not(exported_root: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(exported_root)
    for _ in range(2):
        write_repository(bundle, tmp_path)
    folder = tmp_path / "cervix-fp32"
    assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt", "contract.json", "labels.txt"]
    (folder / "1" / "model.onnx").write_bytes(b"an older graph")
    write_repository(bundle, tmp_path)
    assert (folder / "1" / "model.onnx").read_bytes() == b"an older graph"
    assert (folder / "2" / "model.onnx").read_bytes() == bundle.read("model.onnx")


def test_the_command_writes_one(exported_root: Path, tmp_path: Path) -> None:
    command = [str(exported_root), "--keep-graphs", "--engine", "none", "--tiles", "8", "-b", "4", "--triton"]
    result = CliRunner().invoke(main, [*command, str(tmp_path / "repository")])
    assert result.exit_code == 0, result.stderr
    assert parsed(tmp_path / "repository" / "cervix-int8" / "config.pbtxt").max_batch_size == 64
    assert "cervix-int8" in result.stdout


# What is refused, before any work.


def relabelled(root: Path, **changed: Any) -> Bundle:
    """The bundle with another contract, as another training would have left it."""
    contract = replace(ModelContract.load(root / "contract.json"), operating_point=None, **changed)
    contract.save(root / "contract.json")
    return seal(root)


OTHER_CLASSES = {"classes": tuple(replace(item, name=f"other_{item.name}") for item in SIPAKMED_CLASSES)}


@pytest.mark.parametrize("changed", [OTHER_CLASSES, {"input_size": (48, 32)}], ids=["classes", "size"])
def test_another_models_repository_is_refused_and_stays_as_it_is(
    exported_root: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    folder = tmp_path / "repository"
    write_repository(Bundle.open(exported_root), folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = relabelled(exported_root, **changed)
    with pytest.raises(UsageError, match=r"cervix-fp16 is another model's: tiles of 32 x 32 pixels and the classes"):
        write_repository(other, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    command = [str(exported_root), "--keep-graphs", "--engine", "none", "--triton", str(folder)]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, Bundle.open(exported_root).digest) == (2, other.digest), "nothing was certified"


def test_a_contract_that_is_none_is_not_written_over(exported_root: Path, tmp_path: Path) -> None:
    (tmp_path / "cervix-fp32").mkdir()
    (tmp_path / "cervix-fp32" / "contract.json").write_text("of somebody else")
    with pytest.raises(UsageError, match="cervix-fp32 holds no model of cervix-export: cannot read the contract"):
        write_repository(Bundle.open(exported_root), tmp_path)
    assert [path.name for path in (tmp_path / "cervix-fp32").rglob("*")] == ["contract.json"]


def test_another_tools_model_is_refused_before_any_work(exported_root: Path, tmp_path: Path) -> None:
    (tmp_path / "repository" / "cervix-fp32" / "1").mkdir(parents=True)
    before = Bundle.open(exported_root)
    command = [str(exported_root), "--keep-graphs", "--engine", "none", "--triton", str(tmp_path / "repository")]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, Bundle.open(exported_root)) == (2, before)
    assert "cervix-fp32 is there already, and no model that was written here" in result.stderr


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("", "it is empty: name a folder, or . for this one"),
        ("s3://bucket/repository", "is a URL, expected a file or folder of this machine"),
        ("{root}", "is read, too: write to another file or folder than"),
        ("{root}/engines/triton", "would lie in"),
        ("{root}/bundle.json", "is a file"),
        ("{root}/../file/repository", "cannot be a folder"),
    ],
    ids=["empty", "address", "bundle", "in the bundle", "file", "below a file"],
)
def test_places_that_hold_no_repository_are_refused_before_any_work(
    exported_root: Path, place: str, words: str
) -> None:
    (exported_root.parent / "file").touch()
    before, beside = Bundle.open(exported_root), sorted(exported_root.parent.iterdir())
    command = [str(exported_root), "--keep-graphs", "--engine", "none", "--triton", place.format(root=exported_root)]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr.splitlines()[-1]
    assert (Bundle.open(exported_root), sorted(exported_root.parent.iterdir())) == (before, beside)


def test_a_version_is_there_before_its_configuration(exported_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cervix-fp32"
    folder.mkdir()
    (folder / ".config.pbtxt.tmp").mkdir()  # so that the configuration cannot be written
    with pytest.raises(OSError, match=r"config\.pbtxt"):
        write_repository(Bundle.open(exported_root), tmp_path)
    assert (folder / "1" / "model.onnx").is_file()
    assert not (folder / "config.pbtxt").exists()
    (folder / ".config.pbtxt.tmp").rmdir()
    write_repository(Bundle.open(exported_root), tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt", "contract.json", "labels.txt"]


# The example.


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("triton_client", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Server(ThreadingHTTPServer):
    """Speaks Triton's protocol for one repository, and remembers the pixels that came."""

    def __init__(self, repository: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository = repository
        self.received: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        model = self.path.removeprefix("/v2/models/").removesuffix("/infer")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        (tensor,) = json.loads(body[:length])["inputs"]
        assert tensor["parameters"]["binary_data_size"] == len(body) - length
        pixels = np.frombuffer(body[length:], np.uint8).reshape(tensor["shape"])
        self.server.received += [tile.tobytes() for tile in pixels]
        graph = self.server.repository / model / "1" / "model.onnx"
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        (answers,) = session.run(["probabilities"], {tensor["name"]: pixels})
        output = {"name": "probabilities", "datatype": "FP32", "shape": list(answers.shape)}
        head = json.dumps({"outputs": [output]}).encode()
        self.send_response(200)
        self.send_header("Inference-Header-Content-Length", str(len(head)))
        self.end_headers()
        self.wfile.write(head + answers.astype("<f4").tobytes())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(exported: Exported, tmp_path: Path) -> Iterator[Server]:
    write_repository(exported[0], tmp_path / "repository")
    with Server(tmp_path / "repository") as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join(timeout=30)


def test_the_examples_pixels_are_trainings_and_its_answers_kerass(exported: Exported, server: Server) -> None:
    golden = GoldenSet.load(exported[0])
    tiles = [exported[0].root / tile.file for tile in golden.tiles]
    command = [str(server.repository / "cervix-fp32"), *map(str, tiles), "--url", server.url]
    result = CliRunner().invoke(load_example().main, command)
    assert result.exit_code == 0, result.output
    assert [sha256_bytes(pixels) for pixels in server.received] == [tile.pixels_sha256 for tile in golden.tiles]
    names = exported[0].contract.class_names
    expected = [(str(path), names[row.argmax()]) for path, row in zip(tiles, golden.probabilities(), strict=True)]
    assert [tuple(line.split("\t")[:2]) for line in result.stdout.splitlines()] == expected


@pytest.mark.parametrize("name", ["config.pbtxt", "1/model.onnx"])
def test_a_model_of_somebody_else_is_not_written_over(exported: Exported, tmp_path: Path, name: str) -> None:
    other = tmp_path / "cervix-fp32" / name
    other.parent.mkdir(parents=True)
    other.write_text("platform: 'python'")
    with pytest.raises(OutputExistsError, match="no model that was written here"):
        write_repository(exported[0], tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]
    assert other.read_text() == "platform: 'python'"


def test_a_pipe_in_a_repository_stays(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "cervix-fp32").mkdir()
    os.mkfifo(tmp_path / "cervix-fp32/config.pbtxt")
    with pytest.raises(UsageError, match="no regular file"):
        write_repository(exported[0], tmp_path)


def test_a_repository_that_cannot_be_is_refused_before_the_export(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "repository/cervix-int8").mkdir(parents=True)
    (tmp_path / "repository/cervix-int8/config.pbtxt").write_text("platform: 'python'")
    root = exported[0].root
    before = (root / "bundle.json").stat()
    for folder, words in (
        (tmp_path / "repository", "no model that was written here"),
        (root / "served", "would lie in"),
    ):
        done = CliRunner().invoke(main, [str(root), "--triton", str(folder)])
        assert (done.exit_code, words in done.stderr) == (2, True)
    assert (root / "bundle.json").stat() == before
    assert not (root / "served").exists()
