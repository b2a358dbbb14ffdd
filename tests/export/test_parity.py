"""Three layers of parity: a fault shows in the layer it sits in and in none before it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import jsonschema
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from cervix_engine.backends.register import registered
from cervix_engine.backends.survey import certificates
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.files import write_json
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.table.scores import macro_f1
from cervix_engine.tiles.tile import TileSize
from cervix_export.cli.parity import main
from cervix_export.parity.accuracy import accuracy_change
from cervix_export.parity.layers import AnswerComparison, LayerResult, Limits
from cervix_export.parity.measure import ParityPlan, ParityReport, measure_layers
from cervix_export.parity.tiles import manifest_tiles
from engine.backends.more_runtimes import INDIFFERENT
from export.planted_pixels import nearest, swapped

from .conftest import CONTRACT, drawn_tiles

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]

RECORDED = ParityPlan(keras=False, batch_size=16)


def short(report: ParityReport) -> list[str]:
    """The layers that fall short, in order, each once."""
    return list(dict.fromkeys(item.layer for item in report.layers if not item.passed))


def run(*arguments: str | Path | float) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def sound(exported: Exported) -> ParityReport:
    return measure_layers(exported[0], ParityPlan(batch_size=16))


def test_a_sound_bundle_passes_every_layer_against_keras(sound: ParityReport) -> None:
    assert sound.passed
    assert sound.reference.startswith("keras ")
    pixels, graph, *artefacts = sound.layers
    assert (pixels.layer, graph.layer, {item.layer for item in artefacts}) == ("pixels", "graph", {"artefact"})
    assert pixels.tiles == graph.tiles == 40
    assert graph.parity is not None
    assert graph.parity.max_absdiff < 1e-4
    compared = {item.subject.split(",")[0]: item for item in artefacts}
    assert "model.int8.onnx on onnxruntime-cpu in int8" in compared
    half = compared["model.fp16.onnx on onnxruntime-cpu in fp16"]
    assert half.parity is not None
    assert graph.parity.max_absdiff < half.parity.max_absdiff <= 0.02


def test_recorded_answers_serve_where_keras_is_not(exported: Exported) -> None:
    report = measure_layers(exported[0], RECORDED)
    assert report.passed
    assert report.reference == "the golden tiles' recorded answers"


def test_the_report_is_as_its_schema_says(sound: ParityReport, parity_schema: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(json.dumps(sound.to_json())), parity_schema)


@pytest.fixture(scope="module")
def parity_schema() -> dict[str, Any]:
    import cervix_export

    schema = Path(cervix_export.__file__).with_name("schemas") / "parity.schema.json"
    return dict(json.loads(schema.read_text()))


# Planted faults.


@pytest.mark.parametrize("fault", [swapped, nearest])
def test_a_fault_of_pixels_is_named_by_the_first_layer(exported: Exported, fault: Callable[..., TileSize]) -> None:
    report = measure_layers(exported[0], RECORDED, steps=TileSteps(preprocess_into=fault))
    assert short(report)[0] == "pixels"
    assert "other pixels than in training" in report.layers[0].objections[0]


def without_scale(graph: Any) -> None:
    """The division by 255, which the first convolution's weights hold, is lost."""
    first = next(node for node in graph.node if node.op_type == "Conv")
    (item,) = (item for item in graph.initializer if item.name == first.input[1])
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(255), item.name))


def one_weight(graph: Any) -> None:
    """One weight of the last layer is another."""
    head = next(node for node in reversed(graph.node) if node.op_type in ("MatMul", "Gemm"))
    item = next(item for item in graph.initializer if item.name in head.input)
    values = numpy_helper.to_array(item).copy()
    values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= -30
    item.CopyFrom(numpy_helper.from_array(values, item.name))


def unknown_layer(graph: Any) -> None:
    """The graph has a layer that no runtime knows."""
    graph.node[-1].op_type = "NoSuchLayer"


def planted(root: Path, name: str, fault: Callable[[Any], None]) -> Bundle:
    model = onnx.load_model(root / name)
    fault(model.graph)
    onnx.save_model(model, root / name)
    return seal(root)


@pytest.mark.parametrize("fault", [without_scale, one_weight])
def test_a_fault_of_the_graph_is_named_by_the_second_layer(exported_root: Path, fault: Callable[[Any], None]) -> None:
    assert short(measure_layers(planted(exported_root, "model.onnx", fault), RECORDED))[0] == "graph"


def test_a_fault_of_an_artefact_is_named_by_the_third_layer_alone(exported_root: Path) -> None:
    report = measure_layers(planted(exported_root, "model.fp16.onnx", one_weight), RECORDED)
    assert [item.subject.split()[0] for item in report.layers if not item.passed] == ["model.fp16.onnx"]
    assert short(report) == ["artefact"]


@pytest.mark.parametrize(("certified", "verdict"), [(False, "uncertified"), (True, "SHORT")])
def test_a_mode_that_nobody_asked_for_falls_short_only_where_it_was_certified(
    exported_root: Path, tmp_path: Path, certified: bool, verdict: str
) -> None:
    # BF16 is not a graph but a way to compute one; here it is a way that gives every tile the same answer.
    earlier = next(item for item in certificates(Bundle.open(exported_root)) if item.file == "model.onnx")
    passed = replace(earlier, backend=INDIFFERENT[0], precision="bf16", passed=True)
    if certified:
        write_json(exported_root / passed.path, passed.to_json())
        seal(exported_root)
    with registered(*INDIFFERENT):
        result = run("--model", exported_root, "--no-keras", "--junit", tmp_path / "parity.xml")
    assert result.exit_code == (4 if certified else 0)
    assert verdict in result.stdout
    suite = ElementTree.parse(tmp_path / "parity.xml").getroot()
    (case,) = [case for case in suite.iter("testcase") if INDIFFERENT[0] in case.attrib["name"]]
    assert [len(case.findall(kind)) for kind in ("failure", "skipped")] == ([1, 0] if certified else [0, 1])


def test_an_artefact_that_no_runtime_computes_is_an_objection_and_no_end(exported_root: Path) -> None:
    report = measure_layers(planted(exported_root, "model.fp16.onnx", unknown_layer), RECORDED)
    assert short(report) == ["artefact"]
    assert report.layers[-1].passed


# Accuracy.


def answers(*classes: int, confidence: float = 0.9) -> npt.NDArray[np.float32]:
    rest = (1 - confidence) / 4
    return np.array([[confidence if place == chosen else rest for place in range(5)] for chosen in classes], np.float32)


def test_macro_f1_is_sklearns() -> None:
    from sklearn.metrics import f1_score

    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 5, 60), random.integers(0, 5, 60)
    weights = random.integers(0, 3, (4, 60))
    expected = [f1_score(np.repeat(truth, w), np.repeat(predicted, w), average="macro") for w in weights]
    np.testing.assert_allclose(macro_f1(predicted, truth, weights, classes=5), expected)


def test_a_class_that_is_nowhere_does_not_count() -> None:
    assert macro_f1(np.array([0, 1]), np.array([0, 1]), np.ones((1, 2)), classes=5)[0] == 1


def test_a_drop_has_its_interval_and_unknown_classes_do_not_count() -> None:
    truth = np.array([0, 1, 2, 3, 4] * 20 + [-1] * 5)
    before = answers(*[0, 1, 2, 3, 4] * 20, *[0] * 5)
    after = answers(*[0, 1, 2, 3, 3] * 20, *[4] * 5, confidence=0.6)
    change = accuracy_change(before, after, truth)
    assert change is not None
    assert (change.tiles, change.macro_f1) == (100, 1.0)
    assert change.macro_f1_drop == pytest.approx(1 - (3 + 2 / 3) / 5)
    assert 0.1 < change.interval[0] < change.macro_f1_drop < change.interval[1] < 0.45
    assert change.ece_change == pytest.approx((0.8 - 0.6) - (1 - 0.9))


def test_without_classes_there_is_no_accuracy() -> None:
    assert accuracy_change(answers(0), answers(1), np.array([-1])) is None


def measured(limits: Limits, *, flipped: int = 0) -> LayerResult:
    truth = np.arange(100) % 5
    after = truth.copy()
    after[:flipped] = (after[:flipped] + 1) % 5
    before = answers(*truth, confidence=0.3)
    comparison = AnswerComparison([str(tile) for tile in range(100)], truth, CONTRACT.class_names, limits)
    candidate = answers(*after, confidence=0.3) + np.float32(0.001)
    return comparison.measure("artefact", "x", precision="int8", reference=before, candidate=candidate)


def test_limits_of_ones_own_come_on_top_of_the_gates() -> None:
    assert measured(Limits()).passed
    assert "--atol 0.0001" in measured(Limits(atol=1e-4)).objections[0]
    assert measured(Limits(atol=0.01)).passed
    few = measured(Limits(min_agreement=0.999), flipped=1)
    assert any("--min-agreement 99.90%" in item for item in few.objections)


def test_a_drop_of_accuracy_that_the_tiles_can_tell_is_an_objection() -> None:
    assert any("macro-F1 falls by" in item for item in measured(Limits(), flipped=20).objections)
    assert not any("macro-F1" in item for item in measured(Limits(), flipped=1).objections)


# The command.


def test_the_command_writes_what_it_is_asked_for(exported: Exported, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("parity.json", "parity.xml", "history.jsonl", "drift.png")}
    wanted = ("--json", files["parity.json"], "--junit", files["parity.xml"], "--history", files["history.jsonl"])
    for night in (1, 2):
        result = run("--model", exported[0].root, "--no-keras", *wanted, "--drift-plot", files["drift.png"])
        assert result.exit_code == 0, result.stderr
        assert len(files["history.jsonl"].read_text().splitlines()) == night
    written = json.loads(files["parity.json"].read_text())
    assert written["passed"] is True
    suite = ElementTree.parse(files["parity.xml"]).getroot()
    assert (suite.get("tests"), suite.get("failures")) == (str(len(written["layers"])), "0")
    picture = cv2.imread(str(files["drift.png"]))
    assert picture is not None
    assert picture.std() > 5
    assert "artefact" in result.stdout


def test_what_falls_short_exits_4_and_is_written_all_the_same(exported: Exported, tmp_path: Path) -> None:
    report = tmp_path / "parity.xml"
    result = run("--model", exported[0].root, "--no-keras", "--atol", 1e-9, "--junit", report)
    assert result.exit_code == 4
    assert result.stderr.splitlines()[-1].startswith("error: graph, model.onnx and ")
    assert "Traceback" not in result.stderr
    assert int(ElementTree.parse(report).getroot().get("failures") or 0) >= 1


def test_a_machine_without_tensorflow_certifies_by_recorded_answers(exported: Exported) -> None:
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "from cervix_export.cli.parity import main\n"
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "--model", str(exported[0].root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "recorded answers" in done.stdout


def manifest(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    for number, data in enumerate(drawn_tiles(4)):
        (folder / f"{number}.png").write_bytes(data)
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return folder / "manifest.csv"


def test_tiles_of_ones_own_are_measured_against_keras(exported: Exported, tmp_path: Path) -> None:
    names = CONTRACT.class_names
    rows = [(f"{number}.png", names[number], "val" if number else "train") for number in range(4)]
    report = measure_layers(exported[0], ParityPlan(manifest(tmp_path, rows), ("val",), batch_size=4))
    assert report.passed
    assert report.layers[1].tiles == 3
    assert report.layers[1].accuracy is not None
    assert report.layers[1].accuracy.tiles == 3


CLASS = CONTRACT.class_names[0]


@pytest.mark.parametrize(
    ("rows", "split", "message"),
    [
        ([("0.png", "dog", "val")], "val", "unknown class 'dog'"),
        ([("../0.png", CLASS, "val")], "val", "outside of its folder"),
        ([("/0.png", CLASS, "val")], "val", "outside of its folder"),
        ([("0.png", CLASS, "val")], "test", "no tiles of the split test"),
        ([("missing.png", CLASS, "val")], "val", "1 of 1 tile cannot be used, the first is missing.png"),
        ([], "val", "no tiles"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_in_one_line(
    exported: Exported, tmp_path: Path, rows: list[tuple[str, str, str]], split: str, message: str
) -> None:
    result = run("--model", exported[0].root, "--data", manifest(tmp_path, rows), "--split", split)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_manifest_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("file,label\n")
    result = run("--data", tmp_path / "manifest.csv", "--model", tmp_path)
    assert result.exit_code == 2
    with pytest.raises(Exception, match="line 1: no column path, split"):
        manifest_tiles(tmp_path / "manifest.csv", splits=["val"], contract=CONTRACT)
    with pytest.raises(Exception, match="cannot read"):
        manifest_tiles(tmp_path / "none.csv", splits=[], contract=CONTRACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "val"], "--split is of --data"),
        (["--drift-plot", "x.png"], "--drift-plot draws the nights of --history"),
        (["--data", "m.csv", "--no-keras"], "--data needs Keras"),
        (["--atol", "2"], "--atol"),
        (["--modle", "x"], "--modle"),
    ],
)
def test_wrong_command_lines_are_told_in_one_line(exported: Exported, arguments: list[str], message: str) -> None:
    result = run("--model", exported[0].root, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_bundle_that_was_not_exported_is_told_what_makes_it_so(bundle_root: Path) -> None:
    result = run("--model", bundle_root, "--no-keras")
    assert result.exit_code == 1
    assert "make it with cervix-export" in result.stderr


def test_a_history_that_is_none_is_refused(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("{}\n")
    paths = ("--history", tmp_path / "history.jsonl", "--drift-plot", tmp_path / "drift.png")
    result = run("--model", exported[0].root, "--no-keras", *paths)
    assert result.exit_code == 2
    assert "line 1: not a line of a parity history" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("option", ["--json", "--junit", "--drift-plot", "--history"])
def test_what_no_measurement_wrote_is_not_replaced(exported: Exported, tmp_path: Path, option: str) -> None:
    (tmp_path / "mine").write_text('{"schema": "another/1"}\n')
    more = ("--history", tmp_path / "history.jsonl") if option == "--drift-plot" else ()
    mine = "line 1: not a line of a parity history" if option == "--history" else "not of this command"
    for out, words in ((tmp_path / "mine", mine), (exported[0].root / "bundle.json", "would lie in")):
        before = out.read_bytes()
        result = run("--model", exported[0].root, "--no-keras", *more, option, out)
        assert result.exit_code == 2, result.output
        assert words in result.stderr.splitlines()[-1]
        assert out.read_bytes() == before


def test_a_place_that_cannot_be_written_is_an_error_and_no_traceback(exported: Exported, tmp_path: Path) -> None:
    result = run("--model", exported[0].root, "--no-keras", "--json", tmp_path / "none" / "parity.json")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: cannot write ")
