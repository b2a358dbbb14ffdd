"""Whether an engine is made is decided before any work, and said in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cervix_engine.errors import BackendUnavailableError, EngineIncompatibleError, UsageError
from cervix_engine.gpu import Gpu
from cervix_export.engines.plan import EngineChoice, EngineOptions, EnginePlan, decide_engine

OPTIONS = EngineOptions()
AHEAD = EngineOptions(compute_capabilities=("8.0", "8.9"))


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text("raise RuntimeError('deciding must not import it')")
    monkeypatch.syspath_prepend(tmp_path)


def no_gpu() -> tuple[Gpu, ...]:
    return ()


def an_a10() -> tuple[Gpu, ...]:
    return (Gpu("NVIDIA A10", "8.6"),)


def an_h200() -> tuple[Gpu, ...]:
    return (Gpu("NVIDIA H200", "9.0"),)


def test_auto_says_in_one_line_why_there_is_none(no_tensorrt: None) -> None:
    line = decide_engine("auto", OPTIONS)
    assert line == "no TensorRT engine: tensorrt is not installed; the bundle is complete for ONNX Runtime"


def test_auto_wants_a_gpu(tensorrt: None) -> None:
    assert "no NVIDIA GPU; the bundle is complete" in str(decide_engine("auto", OPTIONS, gpus=no_gpu))


def test_auto_builds_where_it_can(tensorrt: None) -> None:
    assert decide_engine("auto", OPTIONS, gpus=an_a10) == EnginePlan("tensorrt", OPTIONS)


def test_none_is_silent(no_tensorrt: None) -> None:
    assert decide_engine("none", EngineOptions()) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (AHEAD, "only --engine tensorrt-rtx builds ahead of time"),
        (EngineOptions(opt_batch=64), "--engine none makes no engine: leave out how"),
        (EngineOptions(hardware_compat="ampere+"), "--engine none makes no engine: leave out how"),
    ],
)
def test_how_to_build_no_engine_is_refused(no_tensorrt: None, options: EngineOptions, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        decide_engine("none", options)


@pytest.mark.parametrize(("choice", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_an_engine_asked_for_by_name_is_an_error_where_it_cannot_be(
    no_tensorrt: None, choice: EngineChoice, module: str
) -> None:
    with pytest.raises(BackendUnavailableError, match=f"^no {choice} engine: {module} is not installed$"):
        decide_engine(choice, OPTIONS)


@pytest.mark.parametrize("choice", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_asked_for_by_name_is_never_silently_left_out(tensorrt: None, choice: EngineChoice) -> None:
    with pytest.raises(BackendUnavailableError, match="no NVIDIA GPU"):
        decide_engine(choice, OPTIONS, gpus=no_gpu)


def test_rtx_builds_ahead_of_time_without_a_gpu(tensorrt: None) -> None:
    assert decide_engine("tensorrt-rtx", AHEAD, gpus=no_gpu) == EnginePlan("tensorrt-rtx", AHEAD)


@pytest.mark.parametrize("choice", ["auto", "tensorrt"])
def test_only_rtx_builds_ahead_of_time(tensorrt: None, choice: EngineChoice) -> None:
    with pytest.raises(UsageError, match="only --engine tensorrt-rtx"):
        decide_engine(choice, AHEAD)


@pytest.mark.parametrize(("least", "usual", "most"), [(2, 1, 4), (1, 8, 4)])
def test_a_profile_has_an_order(least: int, usual: int, most: int) -> None:
    with pytest.raises(UsageError, match="--min-batch <= --opt-batch <= --max-batch"):
        EngineOptions(min_batch=least, opt_batch=usual, max_batch=most)


@pytest.mark.parametrize("capabilities", [(), ("8.9",)])
def test_rtx_engines_have_no_hardware_compatibility(tensorrt: None, capabilities: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--hardware-compat is for --engine tensorrt"):
        decide_engine("tensorrt-rtx", EngineOptions(compute_capabilities=capabilities, hardware_compat="same-cc"))


SUPPORTED = r"it supports 8\.0, 8\.6, 8\.9, 12\.0 and later"


def test_a_gpu_that_the_runtime_refuses_is_refused_before_anything_is_built(tensorrt: None) -> None:
    refused = f"^TensorRT-RTX does not run on NVIDIA H200, compute capability 9.0: {SUPPORTED}"
    with pytest.raises(EngineIncompatibleError, match=refused) as caught:
        decide_engine("tensorrt-rtx", OPTIONS, gpus=an_h200)
    assert caught.value.exit_code == 5
    assert decide_engine("tensorrt", OPTIONS, gpus=an_h200) == EnginePlan("tensorrt", OPTIONS)


@pytest.mark.parametrize("capability", ["9.0", "7.5", "1.0", "10.0"])
def test_a_capability_that_the_runtime_refuses_is_refused_wherever_one_is(tensorrt: None, capability: str) -> None:
    with pytest.raises(UsageError, match=f"does not run on such GPUs, compute capability {capability}: {SUPPORTED}"):
        decide_engine("tensorrt-rtx", EngineOptions(compute_capabilities=("8.9", capability)), gpus=no_gpu)


@pytest.mark.parametrize(
    ("options", "memory_gib", "profile"),
    [
        (EngineOptions(), None, (1, 64, 128)),
        (EngineOptions(), 7.9, (1, 64, 128)),
        (EngineOptions(), 15.8, (1, 128, 256)),
        (EngineOptions(), 139.8, (1, 256, 512)),
        (EngineOptions(max_batch=32), 139.8, (1, 32, 32)),
        (EngineOptions(opt_batch=600), 139.8, (1, 600, 600)),
        (EngineOptions(min_batch=300), None, (300, 300, 300)),
        (EngineOptions(min_batch=2, opt_batch=8, max_batch=16), 139.8, (2, 8, 16)),
    ],
)
def test_a_profile_suits_the_gpu_as_far_as_it_is_not_asked_for(
    options: EngineOptions, memory_gib: float | None, profile: tuple[int, int, int]
) -> None:
    assert options.profile(memory_gib) == profile
