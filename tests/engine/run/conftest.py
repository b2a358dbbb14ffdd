"""The tiny bundle and folders of drawn tiles, made once; tests that change them make their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cervix_engine.backends import Backend, Combination, open_backend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.run.batch import RunSetup
from engine.run.support import Invoke, draw_folder, make_bundle, make_fake_bundle, threads_end

CPU_FP32 = Combination("onnxruntime-cpu", "fp32")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Whose golden answers are the fake backend's."""
    return make_fake_bundle(tmp_path_factory.mktemp("bundle") / "fake")


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 good tiles in nested folders."""
    return draw_folder(tmp_path_factory.mktemp("tiles") / "study", 50)


@pytest.fixture(scope="session")
def tiny_backend(bundle: Bundle) -> Iterator[Backend]:
    """The tiny bundle's model, loaded."""
    with open_backend(bundle, combination=CPU_FP32, threads=1) as backend:
        yield backend


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "preds.csv"


@pytest.fixture
def invoke(tiles: Path, bundle: Bundle, out: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """`cervix-batch` in this process."""
    monkeypatch.delenv("CERVIX_MODEL", raising=False)

    def run(*options: str, setup: RunSetup | None = None, **paths: Path) -> Result:
        chosen = {"tiles": tiles, "out": out, "model": bundle.root, **paths}
        arguments = [str(chosen["tiles"]), "--out", str(chosen["out"]), "--model", str(chosen["model"]), *options]
        return CliRunner().invoke(main, arguments, obj=setup)

    return run


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test() -> Iterator[None]:
    yield
    assert threads_end()
