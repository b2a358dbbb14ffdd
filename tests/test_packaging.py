"""What people install: the wheel has every file of every package, the sdist all that it takes to build it again."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from cervix_engine.version import __version__

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGES = [ROOT / path for path in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
WHEEL, SDIST = f"cervix-{__version__}-py3-none-any.whl", f"cervix-{__version__}.tar.gz"


def _build(source: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist."""
    pytest.importorskip("hatchling", reason="needs hatchling: pip install '.[dev]'")
    return _build(ROOT, tmp_path_factory.mktemp("dist"))


def _members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_every_file_of_every_package_and_nothing_else(built: Path) -> None:
    files = (path for package in PACKAGES for path in package.rglob("*") if path.is_file())
    wanted = {
        path.relative_to(package.parent).as_posix()
        for path in files
        if "__pycache__" not in path.parts
        for package in PACKAGES
        if path.is_relative_to(package)
    }
    names = _members(built / WHEEL).keys()
    assert {name for name in names if ".dist-info/" not in name} == wanted


def test_its_metadata_is_the_projects(built: Path) -> None:
    members, info = _members(built / WHEEL), f"cervix-{__version__}.dist-info"
    metadata = email.message_from_bytes(members[f"{info}/METADATA"])
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert set(metadata.get_all("Provides-Extra") or ()) == PROJECT["optional-dependencies"].keys()
    programs = members[f"{info}/entry_points.txt"].decode()
    assert all(f"{name} = {target}\n" in programs for name, target in PROJECT["scripts"].items())
    assert f"{info}/licenses/LICENSE" in members


def test_the_sdist_builds_the_same_wheel_without_a_clone(built: Path, tmp_path: Path) -> None:
    with tarfile.open(built / SDIST) as archive:
        archive.extractall(tmp_path, filter="data")
    again = _build(tmp_path / f"cervix-{__version__}", tmp_path / "dist")
    assert _members(again / WHEEL) == _members(built / WHEEL)
