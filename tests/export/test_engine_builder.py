"""Real engines, built ahead of time on a machine that needs no GPU, and proven from the parsed network."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from enum import Enum
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import onnx
import pytest
from click.testing import CliRunner, Result

from cervix_engine.backends.tensorrt import TensorRtRtx
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.engine_file import HardwareCompat, engines_of, read_fingerprint
from cervix_engine.errors import EngineBuildError, UsageError
from cervix_engine.gpu import Gpu
from cervix_engine.values import Precision
from cervix_export.cli.export import main
from cervix_export.engines.builder import BuiltEngine, EngineBuilder
from cervix_export.engines.plan import EngineOptions, EnginePlan, EngineRuntime
from cervix_export.graphs import half
from cervix_export.graphs.from_keras import read_kept
from cervix_export.graphs.precision_proof import integer_share
from cervix_keras import jobs

from .conftest import CONTRACT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install '.[rtx]'"
)

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]
AHEAD = EngineOptions(compute_capabilities=("8.0", "8.9"), max_batch=32)
ENGINE = "engines/sm80-sm89-tensorrt-rtx-fp16.engine"


def build(
    exported: Exported, source: str, precision: Precision, options: EngineOptions = AHEAD, **more: Any
) -> BuiltEngine:
    builder = EngineBuilder.for_plan(EnginePlan("tensorrt-rtx", options))
    return builder.build(exported[0].read(source), source=source, precision=precision, contract=CONTRACT, **more)


def test_the_half_graph_becomes_a_half_engine(exported: Exported) -> None:
    engine = build(exported, "model.fp16.onnx", "fp16")
    assert len(engine.data) > 0
    assert engine.path == ENGINE
    mark = engine.fingerprint
    assert mark.half_share >= 0.99
    assert mark.source_sha256 == exported[0].files["model.fp16.onnx"]
    assert (mark.gpu, mark.compute_capabilities) == (None, ("8.0", "8.9"))
    assert (mark.min_batch, mark.opt_batch, mark.max_batch) == (1, 32, 32)


def test_an_fp32_graph_asked_for_as_fp16_is_refused(exported: Exported) -> None:
    with pytest.raises(EngineBuildError, match=r"asked for as fp16 would do 0\.0% .* expected 99%"):
        build(exported, "model.onnx", "fp16")


def test_the_signed_graph_becomes_an_integer_engine(exported: Exported) -> None:
    kept = read_kept(exported[0])
    engine = build(exported, "model.int8-signed.onnx", "int8", kept_in_float=kept)
    mark = engine.fingerprint
    assert engine.path == "engines/sm80-sm89-tensorrt-rtx-int8.engine"
    share = integer_share(onnx.load_model_from_string(exported[0].read("model.int8-signed.onnx")))
    assert mark.integer_share == pytest.approx(share)
    assert mark.half_share == pytest.approx(1 - share), "what is not in integers is in half precision"


@pytest.mark.parametrize(
    ("widened", "reason"),
    [
        (-1, r"19\.3% of its multiply-accumulates in integers, expected 70%"),
        (-2, r"80\.\d% of its multiply-accumulates in integers, of those outside of .* kept in float, expected 95%"),
    ],
)
def test_a_layer_that_is_not_listed_as_kept_must_be_in_integers(exported: Exported, widened: int, reason: str) -> None:
    graph = onnx.load_model_from_string(exported[0].read("model.int8-signed.onnx"))
    widen(graph.graph, [node for node in graph.graph.node if node.op_type == "Conv"][widened])
    builder = EngineBuilder.for_plan(EnginePlan("tensorrt-rtx", AHEAD))
    settings: Any = {"source": "widened", "precision": "int8", "contract": CONTRACT}
    with pytest.raises(EngineBuildError, match=f"^the engine asked for as int8 would do {reason}$"):
        builder.build(graph.SerializeToString(), **settings, kept_in_float=read_kept(exported[0]))


def widen(graph: Any, convolution: Any) -> None:
    """Let a convolution read what was rounded for it, before that."""
    makers = {node.output[0]: node for node in graph.node}
    dequantise = makers[convolution.input[0]]
    convolution.input[0] = makers[dequantise.input[0]].input[0]


@pytest.mark.parametrize("planted", ["model.onnx", "model.fp16.onnx"])
def test_a_graph_in_floating_point_asked_for_as_int8_is_refused(exported: Exported, planted: str) -> None:
    kept = [node.name for node in onnx.load_model_from_string(exported[0].read(planted)).graph.node]
    for names in ([], kept):
        with pytest.raises(EngineBuildError, match=r"asked for as int8 would do 0\.0% .* in integers, expected 70%"):
            build(exported, planted, "int8", kept_in_float=names)


def test_unsigned_integers_are_never_taken_for_signed_ones(exported: Exported) -> None:
    """The parser would: it warns, and clips all above 127."""
    with pytest.raises(
        EngineBuildError, match=r"would take the unsigned integers of model\.int8\.onnx for signed ones"
    ):
        build(exported, "model.int8.onnx", "int8")


def test_an_fp32_engine_is_called_one(exported: Exported) -> None:
    mark = build(exported, "model.onnx", "fp32").fingerprint
    assert (mark.precision, mark.half_share) == ("fp32", 0.0)


def test_what_is_no_graph_is_one_plain_reason() -> None:
    builder = EngineBuilder.for_plan(EnginePlan("tensorrt-rtx", AHEAD))
    with pytest.raises(EngineBuildError, match=r"^tensorrt-rtx cannot parse model\.onnx: "):
        builder.build(b"no graph", source="model.onnx", precision="fp32", contract=CONTRACT)


def test_an_unknown_capability_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match=r"builds for no compute capability 1\.0; it supports 8\.0, 8\.6"):
        EngineBuilder.for_plan(EnginePlan("tensorrt-rtx", EngineOptions(compute_capabilities=("1.0",))))


def configured(runtime: EngineRuntime, trt: Any, builder: Any, options: EngineOptions) -> Any:
    here = EngineBuilder(EnginePlan(runtime, options), trt, Gpu("NVIDIA A10", "8.6"))
    return here._configure(builder, "tiles", CONTRACT)


def test_profile_and_workspace_reach_the_builder() -> None:
    import tensorrt_rtx as trt

    config = configured("tensorrt-rtx", trt, trt.Builder(trt.Logger()), EngineOptions(workspace_mib=96))
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 96 * 2**20
    assert config.num_optimization_profiles == 1


def test_without_a_wish_kernels_may_use_all_memory() -> None:
    """1 GiB was too little for batches of 128 tiles through a ResNet-101 in integers."""
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger())
    limits = [
        config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
        for config in (builder.create_builder_config(), configured("tensorrt-rtx", trt, builder, EngineOptions()))
    ]
    assert limits[0] == limits[1] > 8 * 2**30


class TensorRT(SimpleNamespace):
    """What `tensorrt` has beyond `tensorrt_rtx`, as far as a configuration goes."""

    class HardwareCompatibilityLevel(Enum):
        NONE, AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = range(3)

    MemoryPoolType = SimpleNamespace(WORKSPACE=0)
    ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    IProgressMonitor = object

    def create_builder_config(self) -> Any:
        ignored: Any = lambda *_: None  # noqa: E731
        level = self.HardwareCompatibilityLevel.NONE
        return SimpleNamespace(
            hardware_compatibility_level=level, add_optimization_profile=ignored, set_memory_pool_limit=ignored
        )

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda *_: None)


@pytest.mark.parametrize(
    ("compat", "level"), [("none", "NONE"), ("same-cc", "SAME_COMPUTE_CAPABILITY"), ("ampere+", "AMPERE_PLUS")]
)
def test_hardware_compatibility_reaches_the_builder(compat: HardwareCompat, level: str) -> None:
    config = configured("tensorrt", TensorRT(), TensorRT(), EngineOptions(hardware_compat=compat))
    assert config.hardware_compatibility_level.name == level


def export(root: Path, *arguments: str) -> Result:
    command = [str(root), "--fp16", "--tiles", "8", "-b", "4", "--engine", "tensorrt-rtx", *arguments]
    return CliRunner().invoke(main, command)


@pytest.fixture
def converted(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions give the graph of an earlier one: what they do is tested elsewhere, and takes long."""

    def copy(_: Bundle, onnx_file: Path) -> str:
        shutil.copyfile(exported[0].root / "model.onnx", onnx_file)
        return "keras"

    monkeypatch.setattr(jobs, "onnx_from_keras", copy)


def test_an_export_puts_the_engine_and_its_fingerprint_into_the_bundle(converted: None, bundle_root: Path) -> None:
    result = export(bundle_root, "--compute-capability", "8.0,8.9", "--max-batch", "32")
    assert result.exit_code == 0, result.stderr
    assert "step 1 of" in result.stderr, "the builder's progress is shown"
    assert ENGINE in result.stdout
    bundle = Bundle.open(bundle_root)
    assert read_fingerprint(bundle, ENGINE).half_share >= 0.99
    mark = read_fingerprint(bundle, ENGINE)
    assert TensorRtRtx().misfit(mark, Gpu("NVIDIA L4", "8.9"), str(TensorRtRtx().version())) is None


def test_a_planted_fp32_graph_fails_the_export(
    converted: None, bundle_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(onnx_file: Path, half_file: Path, **_: Any) -> None:
        shutil.copyfile(onnx_file, half_file)

    monkeypatch.setattr(half, "fp16_from_onnx", planted)
    before = Bundle.open(bundle_root).digest
    result = export(bundle_root, "--compute-capability", "8.9")
    assert result.exit_code == 1
    assert "error: the engine asked for as fp16 would do 0.0%" in result.stderr.splitlines()[-1]
    assert Bundle.open(bundle_root).digest == before


@pytest.mark.parametrize(("option", "planted"), [("--fp16", "model.onnx"), ("--int8", "model.fp16.onnx")])
def test_a_planted_graph_of_a_bundle_fails_the_export(exported_root: Path, option: str, planted: str) -> None:
    source = {"--fp16": "model.fp16.onnx", "--int8": "model.int8-signed.onnx"}[option]
    shutil.copyfile(exported_root / planted, exported_root / source)
    before = seal(exported_root)
    command = [str(exported_root), option, "--keep-graphs", "--engine", "tensorrt-rtx", "--compute-capability", "8.9"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert f"error: the engine asked for as {option[2:]} would do 0.0%" in result.stderr.splitlines()[-1]
    assert Bundle.open(exported_root).digest == before.digest


def test_an_engine_is_built_for_each_precision_asked_for(exported_root: Path) -> None:
    engine = ("--engine", "tensorrt-rtx", "--compute-capability", "8.0,8.9")
    command = [str(exported_root), "--fp16", "--int8", "--keep-graphs", "--tiles", "8", "-b", "4", *engine]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    bundle = Bundle.open(exported_root)
    assert [read_fingerprint(bundle, name).precision for name in engines_of(bundle)] == ["fp16", "int8"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--compute-capability", "89"], "is no compute capability"),
        (["--compute-capability", "1.0"], "compute capability 1.0: it supports 8.0, 8.6, 8.9, 12.0"),
        (["--compute-capability", "8.9,9.0"], "compute capability 9.0: it supports 8.0, 8.6, 8.9"),
        (["--compute-capability", "99.0"], "builds for no compute capability 99.0; it supports 8.0, 8.6, 8.9, 12.0"),
        (["--compute-capability", "8.9", "--opt-batch", "65", "--max-batch", "64"], "--opt-batch <= --max-batch"),
    ],
)
def test_wrong_options_are_usage_errors(bundle_root: Path, arguments: list[str], reason: str) -> None:
    result = export(bundle_root, *arguments)
    assert result.exit_code == 2
    assert reason in result.stderr.splitlines()[-1]


def test_the_fingerprint_is_as_its_schema_says(exported: Exported) -> None:
    schema = json.loads((files("cervix_engine") / "schemas" / "engine.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(build(exported, "model.fp16.onnx", "fp16").fingerprint.to_json(), schema)
