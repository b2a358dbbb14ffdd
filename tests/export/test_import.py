"""Models that somebody else trained: stated, brought to raw pixels, checked on golden tiles, and run as any other."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.bundle.imported import ImportStatement, StatedInput
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract, OperatingPoint
from cervix_engine.errors import ContractError, ConversionError
from cervix_engine.table.reader import Table
from cervix_export.cli.import_model import main
from cervix_export.cli.parity import main as parity
from cervix_export.graphs.compute import answers
from cervix_export.imported.raw_pixels import checked_bytes, raw_pixel_graph, read_graph

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "draw_onnx_model.py"
TILES = 40


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


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


# Graphs: mean over all pixels of each channel, to which a head of two classes is put.

CONTRACT = ModelContract(SIPAKMED_CLASSES[:2], input_size=(6, 8))
HEAD = np.array([[0.02, -0.01], [-0.03, 0.02], [0.01, 0.04]], np.float32)


def small_graph(
    *, layout: str = "NCHW", kind: int = TensorProto.FLOAT, size: tuple[int, int] = (6, 8), batch: int | str = "N",
    names: tuple[str, str] = ("input0", "output0"), domain: str = "", reshape: tuple[int, int] | None = None,
) -> Any:  # fmt: skip
    """Logits from the means of the channels."""
    axes, shape = ([2, 3], [batch, 3, *size]) if layout == "NCHW" else ([1, 2], [batch, *size, 3])
    float_kind = TensorProto.FLOAT if kind == TensorProto.UINT8 else kind
    dtype = helper.tensor_dtype_to_np_dtype(float_kind)
    nodes = [
        helper.make_node("Cast", [names[0]], ["cast"], to=float_kind),
        helper.make_node("ReduceMean", ["cast"], ["means"], axes=axes, keepdims=0, domain=domain),
        helper.make_node("MatMul", ["means", "head"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(HEAD.astype(dtype), "head")]
    if reshape:
        nodes.append(helper.make_node("Reshape", ["logits", "shape"], [names[1]]))
        constants.append(numpy_helper.from_array(np.array(reshape, np.int64), "shape"))
    else:
        nodes.append(helper.make_node("Identity", ["logits"], [names[1]]))
    taken = helper.make_tensor_value_info(names[0], kind, shape)
    given = helper.make_tensor_value_info(names[1], float_kind, [batch, 2])
    graph = helper.make_graph(nodes, "main_graph", [taken], [given], constants)
    opsets = [helper.make_opsetid("", 13), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def brought_in(model: Any, statement: ImportStatement) -> Any:
    read = read_graph(model.SerializeToString(), name="model.onnx")
    return onnx.load_model_from_string(checked_bytes(raw_pixel_graph(read, statement), statement))


def by_hand(pixels: Any, stated: StatedInput) -> Any:
    """The same arithmetic in numpy: NHWC means, logits, softmax."""
    if stated.crop:
        top, left = ((size - seen) // 2 for size, seen in zip(pixels.shape[1:3], stated.crop, strict=True))
        pixels = pixels[:, top : top + stated.crop[0], left : left + stated.crop[1]]
    channels = pixels[..., ::-1] if stated.channel_order == "BGR" else pixels
    values = (channels.astype(np.float64) / 255 * stated.pixel_max - stated.mean) / stated.std
    logits = values.mean(axis=(1, 2)) @ HEAD
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "stated",
    [
        StatedInput(),
        StatedInput(channel_order="BGR", mean=(103.939, 116.779, 123.68)),
        StatedInput(pixel_max=1.0, mean=(0.4, 0.5, 0.6), std=(0.01, 0.02, 0.03)),
        StatedInput(pixel_max=1.0, std=(0.01, 0.01, 0.02), channel_order="BGR", crop=(3, 4)),
    ],
)
def test_the_graph_does_what_is_stated(layout: Any, stated: StatedInput) -> None:
    statement = ImportStatement(CONTRACT, replace(stated, layout=layout), "logits")
    graph = brought_in(small_graph(layout=layout, size=statement.seen_size), statement)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    assert np.allclose(answers(graph, pixels), by_hand(pixels, stated), atol=1e-5)


def test_half_precision_and_raw_graphs_are_taken_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    stated = StatedInput(layout="NCHW", pixel_max=1.0, std=(0.1, 0.1, 0.1))
    half = brought_in(small_graph(kind=TensorProto.FLOAT16), ImportStatement(CONTRACT, stated, "logits"))
    assert np.allclose(answers(half, pixels), by_hand(pixels, stated), atol=5e-3)
    raw = ImportStatement(CONTRACT, StatedInput(), "logits")
    graph = brought_in(small_graph(layout="NHWC", kind=TensorProto.UINT8), raw)
    assert np.allclose(answers(graph, pixels), by_hand(pixels, StatedInput()), atol=1e-5)
    scaled = ImportStatement(CONTRACT, StatedInput(pixel_max=1.0), "logits")
    with pytest.raises(ConversionError, match="takes UINT8"):
        brought_in(small_graph(layout="NHWC", kind=TensorProto.UINT8), scaled)


NCHW = ImportStatement(CONTRACT, StatedInput(layout="NCHW"), "logits")


def test_names_and_a_fixed_batch_are_no_obstacle() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    for model in (
        small_graph(names=("tiles", "probabilities")),
        small_graph(batch=1),
        small_graph(names=("scale", "x")),
    ):
        assert np.allclose(answers(brought_in(model, NCHW), pixels), by_hand(pixels, StatedInput()), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (small_graph(batch=1, reshape=(1, 2)), "export it with a dynamic batch axis"),
        (small_graph(kind=TensorProto.DOUBLE), "takes DOUBLE"),
        (small_graph(domain="com.microsoft"), "needs operators of com.microsoft"),
    ],
    ids=["fixed batch", "double", "foreign operator"],
)
def test_graphs_that_cannot_be_served_are_refused(model: Any, words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        brought_in(model, NCHW)


def test_two_outputs_and_external_data_are_refused() -> None:
    two = small_graph()
    two.graph.output.append(helper.make_tensor_value_info("means", TensorProto.FLOAT, ["N", 3]))
    with pytest.raises(ConversionError, match=r"2 outputs \(output0, means\)"):
        brought_in(two, NCHW)
    outside = small_graph()
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    entry = outside.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "../secret"
    with pytest.raises(ConversionError, match="keeps tensors in another file"):
        brought_in(outside, NCHW)
    with pytest.raises(ConversionError, match=r"model.onnx cannot be used: .*not an ONNX protobuf"):
        read_graph(b"none", name="model.onnx")


def test_an_answer_that_depends_on_its_neighbours_is_refused() -> None:
    model = small_graph()
    batch_mean = helper.make_node("ReduceMean", ["logits"], ["mean"], axes=[0], keepdims=1)
    model.graph.node.insert(3, batch_mean)
    model.graph.node[-1].CopyFrom(helper.make_node("Sub", ["logits", "mean"], ["output0"]))
    with pytest.raises(ConversionError, match="depends on the others in its batch"):
        brought_in(model, NCHW)


def test_statements_are_read_back_and_checked() -> None:
    stated = StatedInput("NCHW", "BGR", 1.0, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (4, 4))
    statement = ImportStatement(CONTRACT, stated, "logits")
    assert ImportStatement.from_json(json.loads(json.dumps(statement.to_json()))) == statement
    assert ImportStatement.from_json(CONTRACT.to_json()) == ImportStatement(CONTRACT)
    five = ImportStatement(ModelContract(SIPAKMED_CLASSES), output="logits").to_json()
    decided = {**five, "operating_point": {"abnormal_at": 0.2}}
    assert ImportStatement.from_json(decided).contract.operating_point == OperatingPoint(0.2)
    with pytest.raises(ContractError, match=r"crop .* is larger than input_size"):
        ImportStatement(CONTRACT, StatedInput(crop=(7, 8)))
    for wrong in ({"layout": "CHW"}, {"channel_order": "GBR"}, {"pixel_max": 0}, {"mean": [1, 2]}, {"crop": [0, 1]}):
        with pytest.raises(ContractError, match=next(iter(wrong))):
            ImportStatement.from_json({**statement.to_json(), "input": wrong})


# Keras


@pytest.fixture(scope="module")
def plain_keras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Keras model of somebody else: BGR floats of 24 px in, logits out; and what is stated of it."""
    import keras

    keras.utils.set_random_seed(1)
    inputs = keras.Input((24, 24, 3))
    values = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    values = keras.layers.GlobalAveragePooling2D()(values)
    folder = tmp_path_factory.mktemp("plain")
    keras.Model(inputs, keras.layers.Dense(5)(values)).save(folder / "theirs.keras")
    contract = ModelContract(SIPAKMED_CLASSES, input_size=(32, 32))
    stated = StatedInput("NHWC", "BGR", 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (24, 24))
    (folder / "contract.json").write_text(json.dumps(ImportStatement(contract, stated, "logits").to_json()))
    return folder


def test_a_plain_keras_model_is_imported(plain_keras: Path, golden_tiles: list[bytes], tmp_path: Path) -> None:
    import keras

    (tmp_path / "tiles").mkdir()
    for number, tile in enumerate(golden_tiles[:12]):
        (tmp_path / "tiles" / f"{number:02d}.png").write_bytes(tile)
    given = ["--contract", plain_keras / "contract.json", "--golden", tmp_path / "tiles", "-o", tmp_path / "bundle"]
    result = invoke(plain_keras / "theirs.keras", *given)
    assert result.exit_code == 0, result.output
    assert "warning: certificates will rest on 12 golden tiles alone" in result.stdout
    bundle = Bundle.open(tmp_path / "bundle")
    golden = GoldenSet.load(bundle)
    assert str(golden.reference).startswith("keras ")
    theirs = keras.saving.load_model(plain_keras / "theirs.keras", compile=False)
    seen = golden.pixels()[:, 4:28, 4:28, ::-1].astype(np.float32) / 255
    mean, std = (np.array(values, np.float32) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    logits = np.asarray(theirs((seen - mean) / std))
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert np.allclose(golden.probabilities(), raised / raised.sum(axis=1, keepdims=True), atol=1e-5)
    # It is a Keras reference like a trained one: opened in safe mode, raw pixels in.
    own = keras.saving.load_model(bundle.root / "model.keras", safe_mode=True)
    assert (own.inputs[0].dtype, own.input_shape) == ("uint8", (None, 32, 32, 3))


def test_a_keras_model_without_its_softmax_is_caught(
    plain_keras: Path, golden_tiles: list[bytes], tmp_path: Path
) -> None:
    stated = json.loads((plain_keras / "contract.json").read_text()) | {"output": "probabilities"}
    (tmp_path / "contract.json").write_text(json.dumps(stated))
    (tmp_path / "tile.png").write_bytes(golden_tiles[0])
    given = ["--contract", tmp_path / "contract.json", "--golden", tmp_path, "-o", tmp_path / "bundle"]
    result = invoke(plain_keras / "theirs.keras", *given)
    assert result.exit_code == 1
    assert 'state "output": "logits"' in result.stderr
    assert not (tmp_path / "bundle").exists()
