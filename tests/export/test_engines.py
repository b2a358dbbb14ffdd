"""Whether an engine is made is decided before any work, and said in one line."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from cervix_engine.errors import BackendUnavailableError, EngineBuildError
from cervix_export import engines
from cervix_export.engines import EngineChoice, decide_engine, gpu_count


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


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(engines, "gpu_count", lambda: count)


def test_auto_says_in_one_line_why_there_is_none(no_tensorrt: None) -> None:
    line = decide_engine("auto")
    assert line == "no TensorRT engine: tensorrt is not installed; the bundle is complete for ONNX Runtime"


def test_auto_wants_a_gpu(tensorrt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    assert "no NVIDIA GPU" in (decide_engine("auto") or "")


def test_auto_never_fails_an_export(tensorrt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 1)
    assert "does not build engines yet; the bundle is complete" in (decide_engine("auto") or "")


def test_none_is_silent(no_tensorrt: None) -> None:
    assert decide_engine("none") is None


@pytest.mark.parametrize(("choice", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_an_engine_asked_for_by_name_is_an_error_where_it_cannot_be(
    no_tensorrt: None, choice: EngineChoice, module: str
) -> None:
    with pytest.raises(BackendUnavailableError, match=f"^no {choice} engine: {module} is not installed$"):
        decide_engine(choice)


@pytest.mark.parametrize("choice", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_asked_for_by_name_is_never_silently_left_out(
    tensorrt: None, monkeypatch: pytest.MonkeyPatch, choice: EngineChoice
) -> None:
    with_gpus(monkeypatch, 0)
    with pytest.raises(BackendUnavailableError, match="no NVIDIA GPU"):
        decide_engine(choice)
    with_gpus(monkeypatch, 1)
    with pytest.raises(EngineBuildError, match="does not build engines yet"):
        decide_engine(choice)


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu_count() == 0


@pytest.mark.gpu
def test_the_driver_counts_gpus() -> None:
    assert gpu_count() >= 1
