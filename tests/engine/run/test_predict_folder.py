"""A folder with everything that goes wrong in one: exactly one row each, and the good rows as if alone."""

from __future__ import annotations

import base64
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.run.batch import DEFAULT_SETUP, BatchConfig, RunSetup, predict_folder
from cervix_engine.run.record import RunRecord
from cervix_engine.table.coordinates import FolderSlides
from cervix_engine.table.names import escape_name
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.sources.folder import Folder
from engine.run.support import (
    CLASS_NAMES,
    CONTRACT,
    FINISHED,
    beside,
    drawn_tile,
    encoded,
    plain_outcomes,
    read_table,
    run_setup,
    tiny_onnx,
)
from engine.run.support import make_bundle as make_bundle_at

pytestmark = pytest.mark.timeout(300)

# 16x16 pixels in four components, as Photoshop writes them.
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAUDg8SDw0UEhASFxUUGB4yIR4cHB49LC4kMklATEtHQEZFUFpzYlBVbVZFRmSIZW13e4GCgU5gjZeMfZZz"
    "foF8/8AAFAgAEAAQBEMRAE0RAFkRAEsRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAAGBf/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAOBEMATQBZAEsA"
    "AD8Aq2Eo1eAAAA//2Q=="
)


def with_alpha(alpha: int) -> bytes:
    colours = cv2.imdecode(np.frombuffer(drawn_tile(70), np.uint8), cv2.IMREAD_COLOR)
    assert colours is not None
    return encoded(".png", np.dstack([colours, np.full(colours.shape[:2], alpha, np.uint8)]))


def with_exif_orientation(jpeg: bytes, orientation: int) -> bytes:
    """`jpeg` with an EXIF segment that asks viewers to turn it."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def grey(depth: type[np.uint8] | type[np.uint16]) -> bytes:
    top = np.iinfo(depth).max
    return encoded(".png", np.linspace(0, top, 40 * 30).reshape(40, 30).astype(depth))


JPEG, PNG = drawn_tile(50, ".jpg"), drawn_tile(51, ".png")

GOOD = {
    "a.jpg": JPEG,
    "deep/er/still/b.png": PNG,
    "grey.png": grey(np.uint8),
    "opaque.png": with_alpha(255),
    "turned.jpg": with_exif_orientation(JPEG, 6),
    'name, with "quotes"\nand a line.png': drawn_tile(52),
    "=1+1.png": drawn_tile(53),
    "p%41.png": drawn_tile(54),
    "jpeg inside.png": drawn_tile(55, ".jpg"),
    "z.webp": drawn_tile(56, ".webp"),
    "z.tiff": drawn_tile(57, ".tiff"),
}
BAD = {
    "empty.jpg": (b"", "empty"),
    "text.png": (b"Patient: see the attached file\n", "unknown_format"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut in its header.jpg": (JPEG[:100], "truncated"),
    "cut.png": (PNG[:-20], "truncated"),
    "deep.png": (grey(np.uint16), "unsupported_depth"),
    "cmyk.jpg": (CMYK_JPEG, "unsupported_colour"),
    "glass.png": (with_alpha(254), "transparent"),
    "deep/er/zeros.tif": (bytes(500), "unknown_format"),
}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad tiles together, and three files that are no tiles."""
    root = write(tmp_path_factory.mktemp("hard") / "study", GOOD | {name: data for name, (data, _) in BAD.items()})
    return write(root, {"notes.txt": b"x", "deep/Thumbs.db": b"x", "case.svs": b"x", ".hidden.png": PNG})


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good tiles alone."""
    return write(tmp_path_factory.mktemp("easy") / "study", GOOD)


def assert_alike(rows: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """Equal but for the last digits, which a runtime may choose by the thread count and a batch's other tiles."""
    for row, other in zip(rows, expected, strict=True):
        for column, cell in row.items():
            if cell and (column.startswith("prob_") or column == "confidence"):
                assert float(cell) == pytest.approx(float(other[column]), abs=1e-5)
            else:
                assert cell == other[column]


Predict = Callable[..., tuple[list[dict[str, str]], RunRecord]]


@pytest.fixture
def predict(bundle: Bundle, tmp_path: Path) -> Predict:
    def run(
        tiles: Path, name: str = "preds.csv", setup: RunSetup = DEFAULT_SETUP, **options: int
    ) -> tuple[list[dict[str, str]], RunRecord]:
        config = BatchConfig(tiles=tiles, out=tmp_path / name, model=bundle.root, **options)  # type: ignore[arg-type]
        report = predict_folder(config, setup=setup)
        return read_table(config.out), report

    return run


def test_exactly_one_row_for_each_tile(hard: Path, predict: Predict) -> None:
    rows, report = predict(hard)
    by_path = {row["path"]: row for row in rows}
    assert [row["path"] for row in rows] == [escape_name(name) for name in sorted(GOOD | BAD, key=str.encode)]
    for name in GOOD:
        row = by_path[escape_name(name)]
        assert (row["status"], row["error"]) == ("ok", "")
        assert row["pred"] in CLASS_NAMES
        assert sum(float(row[f"prob_{label}"]) for label in CLASS_NAMES) == pytest.approx(1, abs=1e-5)
    for name, (_, kind) in BAD.items():
        row = by_path[escape_name(name)]
        assert (row["status"], row["error"].partition(": ")[0]) == ("failed", kind), name
        assert {label for label, cell in row.items() if cell} == {"path", "slide_id", "status", "error"}
    assert (report.found, report.ok, report.failed, report.ignored) == (len(GOOD | BAD), len(GOOD), len(BAD), 4)
    kinds = [kind for _, kind in BAD.values()]
    assert report.failures == {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def test_errors_name_no_file(hard: Path, predict: Predict) -> None:
    rows, _ = predict(hard)
    for row in rows:
        assert str(hard) not in row["error"]
        assert Path(row["path"]).name not in row["error"]


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_good_rows_are_as_without_the_bad_ones(hard: Path, easy: Path, predict: Predict, batch_size: int) -> None:
    alone, _ = predict(easy, "alone.csv", batch_size=batch_size)
    mixed, _ = predict(hard, "mixed.csv", batch_size=batch_size)
    good = [row for row in mixed if row["status"] == "ok"]
    assert len(good) == len(alone) == len(GOOD)
    assert_alike(good, alone)


def test_the_table_is_the_plain_loop_s(hard: Path, predict: Predict, tiny_backend: object, tmp_path: Path) -> None:
    rows, _ = predict(hard, batch_size=4)
    tiles = list(discover(Folder(hard), spool=tmp_path))
    row_format = RowFormat(CONTRACT, slides=FolderSlides(hard.name))
    outcomes = plain_outcomes(hard, tiles, tiny_backend, 4)  # type: ignore[arg-type]
    expected = [
        dict(zip(row_format.columns, row_format.row(tile, outcome), strict=True))
        for tile, outcome in zip(tiles, outcomes, strict=True)
    ]
    assert_alike(rows, expected)


def test_an_exif_orientation_is_ignored_as_the_contract_says(predict: Predict, hard: Path) -> None:
    rows = {row["path"]: row for row in predict(hard, batch_size=1)[0]}
    same = {column: cell for column, cell in rows["turned.jpg"].items() if column != "path"}
    assert same == {column: cell for column, cell in rows["a.jpg"].items() if column != "path"}


@pytest.mark.parametrize("batch_size", [3, 32])
def test_tables_are_byte_identical_for_any_workers(
    hard: Path, predict: Predict, tmp_path: Path, batch_size: int
) -> None:
    tables = set()
    for workers in (1, 2, 8):
        predict(hard, f"{workers}.csv", workers=workers, batch_size=batch_size)
        tables.add((tmp_path / f"{workers}.csv").read_bytes())
    assert len(tables) == 1


def test_the_command_ends_with_3(hard: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "preds.csv"
    done = CliRunner().invoke(main, [str(hard), "--out", str(out), "--model", str(bundle.root)])
    assert done.exit_code == 3, done.output
    assert f"{len(GOOD | BAD)} tiles: {len(GOOD)} predicted, {len(BAD)} failed" in done.stderr
    assert "3 truncated" in done.stderr
    assert beside(out) == FINISHED


def test_a_folder_of_bad_tiles_alone(predict: Predict, tmp_path: Path) -> None:
    root = write(tmp_path / "bad", {name: data for name, (data, _) in BAD.items()})
    rows, report = predict(root)
    assert {row["status"] for row in rows} == {"failed"}
    assert (report.ok, report.failed) == (0, len(BAD))


def test_tiles_that_go_away_after_they_were_listed(easy: Path, predict: Predict, tmp_path: Path) -> None:
    root = tmp_path / "moving"
    shutil.copytree(easy, root)
    rows, report = predict(root, setup=run_setup(once_listed=(root / "a.jpg").unlink))
    assert [(row["path"], row["error"]) for row in rows if row["status"] == "failed"] == [
        ("a.jpg", "unreadable: No such file or directory")
    ]
    assert report.found == len(rows) == len(GOOD)


def test_every_class_and_category_can_be_predicted(tiles: Path, predict: Predict) -> None:
    rows, report = predict(tiles)
    categories = {item.name: item.category for item in CONTRACT.classes}
    assert report.found == report.ok == 50
    assert len({row["pred"] for row in rows}) >= 4
    assert all(row["category"] == categories[row["pred"]] for row in rows)


def test_half_precision_answers_alike(tiles: Path, tmp_path: Path, bundle: Bundle, predict: Predict) -> None:
    from cervix_engine.bundle.bundle import seal

    root = tmp_path / "half"
    make_bundle_at(root)
    (root / "model.fp16.onnx").write_bytes(tiny_onnx(half=True))
    seal(root)
    config = BatchConfig(tiles=tiles, out=tmp_path / "half.csv", model=root, precision="fp16")
    report = predict_folder(config)
    assert (report.backend.precision, report.backend.artefact) == ("fp16", "model.fp16.onnx")
    full, _ = predict(tiles)
    for row, expected in zip(read_table(config.out), full, strict=True):
        for label in CLASS_NAMES:
            assert float(row[f"prob_{label}"]) == pytest.approx(float(expected[f"prob_{label}"]), abs=0.02)
    assert read_table(config.out) != full
