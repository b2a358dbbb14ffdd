"""The house rules that no single module can keep: which room may know which, and what a command may cost to ask."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

import cervix_engine

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
COMMANDS = sorted(PROJECT["scripts"])

# What each room must not import, at its top or inside a function.
CLOSED_DOORS = {
    "engine": {"tensorflow", "keras", "cervix_keras", "cervix_train", "cervix_export"},
    "edge": {"cervix_train", "cervix_export"},
    "export": {"cervix_train"},
    "train": {"cervix_export"},
}
ROOM_FILES = [path for room in CLOSED_DOORS for path in sorted((ROOT / room).rglob("*.py"))]

# `--help` must answer at once: these take from a tenth of a second to several seconds each.
HEAVY = {
    "numpy",
    "cv2",
    "onnxruntime",
    "onnx",
    "tensorflow",
    "keras",
    "sklearn",
    "matplotlib",
    "tensorrt",
    "tensorrt_rtx",
}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import statement, and of every `import_module` or `__import__` of a plain string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func)
            if function in ("__import__", "import_module", "importlib.import_module"):
                yield node.lineno, str(node.args[0].value)


def _heavy_among(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules} & HEAVY


def test_the_import_scan_sees_every_form() -> None:
    source = "def f():\n import keras.layers as k\n from tensorflow.io import x\n import_module('cervix_train.a')\n"
    assert list(_imports(source)) == [(2, "keras.layers"), (3, "tensorflow.io"), (4, "cervix_train.a")]


@pytest.mark.parametrize("path", ROOM_FILES, ids=_name)
def test_arrows_run_only_towards_the_engine(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    crossed = [
        f"line {line}: {module}"
        for line, module in _imports(path.read_text(encoding="utf-8"))
        if module.partition(".")[0] in CLOSED_DOORS[room]
    ]
    assert crossed == []


@pytest.mark.parametrize("path", sorted((ROOT / "engine").rglob("*.py")), ids=_name)
def test_the_engine_keeps_to_python_3_10_syntax(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 10))


@pytest.mark.parametrize("package", ["cervix_engine", "cervix_keras", "cervix_export", "cervix_train"])
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert package in done.stdout.split()
    assert _heavy_among(set(done.stdout.split())) == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command: str) -> None:
    script = Path(sys.executable).with_name(command)
    assert script.is_file(), f"{command} is not installed: make setup"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(script), "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"Usage: {command} ")
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "click" in imported, "the list of imports was not understood"
    assert _heavy_among(imported) == set()


VERSION = cervix_engine.__version__


def test_the_version_is_written_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)


def test_the_changelog_knows_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", changelog, re.MULTILINE)
    assert versions[:2] == ["Unreleased", VERSION]


def test_a_tag_of_this_commit_is_its_version() -> None:
    git = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD", "v*"]
    tags = subprocess.run(git, capture_output=True, text=True, timeout=60)  # outside of a clone there are none
    assert tags.stdout.split() in ([], [f"v{VERSION}"])


def test_the_image_is_built_from_every_package() -> None:
    copied = set(re.findall(r"^COPY (\w+) \1$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    sent = set(re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    packages = {path.split("/")[0] for path in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert packages == copied
    assert packages <= sent


SCHEMAS = [path for room in CLOSED_DOORS for path in sorted((ROOT / room).rglob("*.schema.json"))]


@pytest.mark.parametrize("path", SCHEMAS, ids=_name)
def test_schemas_are_schemas(path: Path) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validators.validator_for(schema).check_schema(schema)


def test_every_dependency_is_accounted_for_with_its_floor() -> None:
    extras = PROJECT["optional-dependencies"]
    product = [*PROJECT["dependencies"], *(line for name, lines in extras.items() if name != "dev" for line in lines)]
    required = {match[1]: match[2] for line in product if (match := re.match(r"([\w-]+)(?:\[.+\])?>=([\d.]+)", line))}
    assert len(required) == len({re.split(r"[\[>=;]", line)[0] for line in product}), "every requirement has a floor"
    table = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", table, re.MULTILINE))
    assert documented == required
    development = re.search(r"^\| (atheris[^|]*) \|", table, re.MULTILINE)
    assert development is not None
    assert sorted(development[1].split(", ")) == sorted(line.partition(">=")[0] for line in extras["dev"])


def test_the_installed_versions_keep_the_floors() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    known = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["export"]):
        name, floor = re.match(r"([\w-]+)>=([\d.]+)", line).groups()  # type: ignore[union-attr]
        assert tuple(map(int, known[name].split(".")[:3])) >= tuple(map(int, floor.split("."))), line


HINTS = re.compile(r"pip install (?:\S+ )*'?([\w.]*)\[([\w{}.,]+)\]")


@pytest.mark.parametrize("path", [*ROOM_FILES, ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=_name)
def test_hints_name_an_install_that_exists(path: Path) -> None:
    # The project is on no index: from there, its name would install somebody else's.
    extras = PROJECT["optional-dependencies"].keys()
    for place, names in HINTS.findall(path.read_text(encoding="utf-8")):
        assert place == "."
        assert set(names.split(",")) <= extras or "{" in names
    assert "pip install cervix" not in path.read_text(encoding="utf-8")


def test_help_of_a_run_loads_little_of_the_standard_library_too() -> None:
    """Each of these takes milliseconds that whoever asks for `--help` would wait for."""
    script = Path(sys.executable).with_name("cervix-batch")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(script), "--help"], capture_output=True, text=True, timeout=120
    )
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert {"click", "cervix_engine.cli.batch"} <= imported
    assert imported & {"logging", "hashlib", "tempfile", "dataclasses", "socket"} == set()
