"""The shape of the house: which room may know which, how large its pieces are, and that the map names all of them."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    name: ROOT / folder / name
    for folder, name in (
        ("engine", "cervix_engine"),
        ("edge", "cervix_keras"),
        ("export", "cervix_export"),
        ("train", "cervix_train"),
    )
}

# Each package's rooms, the lowest first: a module imports from its own room and those before it. A room is a folder or,
# at the package's root, a module; those in one tuple stand side by side and are one room.
ROOMS: dict[str, list[tuple[str, ...]]] = {
    "cervix_engine": [
        (
            "errors",
            "values",
            "files",
            "outputs",
            "machine",
            "gpu",
            "contract",
            "privacy",
            "version",
            "locks",
            "extras",
            "words",
        ),
        ("tiles",),
        ("bundle",),
        ("drift",),
        ("backends",),
        ("table",),
        ("run",),
        ("cluster",),
        ("report",),
        ("bench",),
        ("doctor",),
        ("model",),
        ("cli",),
    ],
    "cervix_export": [
        ("graphs",),
        ("engines",),
        ("imported",),
        ("certify", "publish", "triton"),
        ("parity",),
        ("export",),
        ("cli",),
    ],
    "cervix_train": [
        ("progress",),
        ("data",),
        ("features",),
        ("learning",),
        ("results",),
        ("training",),
        ("audit",),
        ("synthetic",),
        ("cli",),
    ],
}

MOST_LINES, MOST_PARAMETERS, MOST_MODULES, MOST_PATCHES = 40, 7, 14, 65


def _modules() -> Iterator[Path]:
    for package in PACKAGES.values():
        yield from sorted(package.rglob("*.py"))


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _name(path: Path) -> str:
    package = next(root for root in PACKAGES.values() if path.is_relative_to(root))
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


NAMES = {_name(path): path for path in _modules()}


def _imports(path: Path) -> Iterator[str]:
    """The project's modules that one imports, at its top or inside a function; imports for types alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in NAMES or node.module in NAMES:
                    yield full if full in NAMES else node.module


def _room(module: str) -> int | None:
    package, _, rest = module.partition(".")
    rooms = ROOMS.get(package)
    if not rooms or not rest:
        return None  # a package's root holds its version
    return next(number for number, room in enumerate(rooms) if rest.split(".")[0] in room)


@pytest.mark.parametrize("path", [path for path in _modules() if _name(path).split(".")[0] in ROOMS], ids=_id)
def test_no_arrow_runs_upwards_between_rooms(path: Path) -> None:
    own = _room(_name(path))
    package = _name(path).split(".")[0]
    upwards = [
        other
        for other in _imports(path)
        if own is not None and other.split(".")[0] == package and (_room(other) or 0) > own
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: set(_imports(path)) - {name} for name, path in NAMES.items()}
    # Whoever imports nothing that is left is no part of a circle.
    while leaves := [name for name, known in graph.items() if not known & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == []


@pytest.mark.parametrize("path", list(_modules()), ids=_id)
def test_functions_are_short_and_take_few_parameters(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert (node.end_lineno or 0) - node.lineno < MOST_LINES, f"{node.name}, line {node.lineno}"
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own = bool(arguments) and arguments[0].arg in ("self", "cls")
        # A command's function has a parameter for each of its options.
        assert "cli" in path.parts or len(arguments) - own <= MOST_PARAMETERS, f"{node.name}, line {node.lineno}"


def test_no_folder_is_crowded() -> None:
    crowded = {
        _id(folder): count for folder, count in Counter(p.parent for p in _modules()).items() if count > MOST_MODULES
    }
    assert crowded == {}


def test_the_map_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [_id(path) for path in _modules() if path.name != "__init__.py" and f"- `{path.name}` – " not in page]
    assert missing == []


def test_tests_hand_things_in_and_patch_few() -> None:
    calls = (
        ast.unparse(node.func)
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    )
    patches = sum(call in ("setattr", "patch.setattr", "monkeypatch.setattr") for call in calls)
    assert patches <= MOST_PATCHES
