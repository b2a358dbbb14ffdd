"""What the engine's tests share: a small contract and the JSON documents' schemas; the tiny bundle and folders of drawn
tiles and slides, made once (tests that change them make their own); small tables, by the engine's own row format."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from cervix_engine.backends import Backend, Combination, open_backend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.contract import ModelContract, TileClass, TileStatistic
from cervix_engine.run.batch import RunSetup
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.tile import Prediction, TileFailure, TileRef, TileSize
from engine.run.support import Invoke, draw_folder, make_bundle, make_fake_bundle, threads_end
from engine.table.tables import CONTRACT, Tile, WriteTable
from engine.tiles.slides.drawn_slides import draw_slide, write_aperio, write_generic

CPU_FP32 = Combination("onnxruntime-cpu", "fp32")
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
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two whole slides: `aperio.svs` of 0.25 µm a pixel and `generic.tiff` of 0.5. Read only."""
    folder = tmp_path_factory.mktemp("slides")
    write_aperio(folder / "aperio.svs", draw_slide(1500, 1100, seed=1), downsamples=(1, 4))
    write_generic(folder / "generic.tiff", draw_slide(1300, 1000, seed=2))
    return folder


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


@pytest.fixture
def write_table(tmp_path: Path) -> WriteTable:
    def write(tiles: Sequence[Tile], name: str = "preds.csv", contract: ModelContract = CONTRACT) -> Path:
        row_format = RowFormat(contract, slides={tile.path: tile.slide for tile in tiles}.__getitem__)
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(row_format.columns)
            for index, tile in enumerate(tiles):
                outcome = (
                    TileFailure("decode", tile.reason)
                    if tile.reason
                    else Prediction(TileSize(100, 120), tuple(tile.probabilities))
                )
                writer.writerow(row_format.row(TileRef(index, tile.path), outcome))
        return tmp_path / name

    return write
