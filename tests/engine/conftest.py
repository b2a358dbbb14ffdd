"""A small contract, and the JSON documents' schemas."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import jsonschema
import pytest

from cervix_engine.contract import ModelContract, TileClass, TileStatistic

Mutants = Callable[[Any], list[tuple[str, Any]]]


@pytest.fixture(scope="session")
def contract() -> ModelContract:
    return ModelContract(
        classes=(
            TileClass("cervix_dyk", "Dyskeratotic", "abnormal"),
            TileClass("cervix_mep", "Metaplastic", "benign"),
            TileClass("cervix_sfi", "Superficial-intermediate", "normal"),
        ),
        input_size=(24, 32),
        temperature=1.25,
        tile_statistics=(TileStatistic("height_px", 30, 84.5, 160.0),),
    )


@pytest.fixture(scope="session")
def validate() -> Callable[[str, Any], None]:
    """Raise `jsonschema.ValidationError` where a document is not of the named kind, such as `contract`."""

    def check(name: str, document: Any) -> None:
        text = (resources.files("cervix_engine") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
        jsonschema.Draft202012Validator(json.loads(text)).validate(document)

    return check


@pytest.fixture(scope="session")
def mutants() -> Mutants:
    """All documents that differ from a valid one in one key or one value: (what was done, document)."""

    def make(document: Any) -> list[tuple[str, Any]]:
        return [(what, mutant) for path in _paths(document) for what, mutant in _changed(document, path)]

    return make


def _paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from _paths(child, (*path, key))


def _changed(document: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """The document with the node at `path` changed in every way."""
    name = ".".join(map(str, path))
    node = document
    for key in path:
        node = node[key]
    if isinstance(node, dict):
        yield f"with {name}.unknown", _replaced(document, path, {**node, "unknown": 1})
        for key in node:
            rest = {other: value for other, value in node.items() if other != key}
            yield f"without {name}.{key}", _replaced(document, path, rest)
    if path:
        yield f"other type of {name}", _replaced(document, path, 5 if isinstance(node, str | list | dict) else ["x"])


def _replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return changed
