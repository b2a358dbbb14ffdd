"""What a test needs beyond this machine's CPU: real tiles or a GPU. Where it is missing, the summary says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.report.chromium import PROGRAM, Page, open_browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_data = pytest.mark.skip(reason="needs real tiles: $CERVIX_DATA/sipakmed/manifest.csv is not there")
    skip_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU: nvidia-smi lists none")
    data = [item for item in items if item.get_closest_marker("data")]
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if data and not _has_data():
        for item in data:
            item.add_marker(skip_data)
    if gpu and not _has_gpu():
        for item in gpu:
            item.add_marker(skip_gpu)


def _sipakmed() -> Path:
    return Path(os.environ.get("CERVIX_DATA") or "/nonexistent") / "sipakmed"


def _has_data() -> bool:
    return (_sipakmed() / "manifest.csv").is_file()


def _has_gpu() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    listing = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser, for tests that look at a page."""
    if PROGRAM is None:
        pytest.skip("needs a browser: apt install chromium")
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real tiles, for tests marked `data`."""
    assert _has_data(), "mark this test `data`: it needs real tiles and would fail elsewhere"
    return _sipakmed()


@pytest.fixture(scope="session")
def sipakmed_manifest(data_root: Path) -> Path:
    """The manifest of the real tiles (path, label, group, split, width, height, sha256), for tests marked `data`."""
    return data_root / "manifest.csv"
