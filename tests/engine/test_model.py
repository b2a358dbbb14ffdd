"""The door for Python: it answers as a run does, and refuses what is no RGB tile, on every backend."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cervix_engine
from cervix_engine import Model
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import OutputExistsError, UsageError
from cervix_engine.run.config import RunOptions
from cervix_engine.tiles.preprocess import decode, preprocess
from engine.run.support import CONTRACT, drawn_tile, encoded, environment, read_table, reference_probabilities

ROOT = Path(__file__).parents[2]
BACKENDS = ("onnxruntime-cpu", "openvino")


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Model]:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    with Model.open(str(bundle.root), precision="fp32", backend=request.param, batch_size=4) as opened:
        yield opened


def tiles_of(count: int) -> list[Any]:
    return [decode(drawn_tile(seed), contract=CONTRACT) for seed in range(count)]


def expected(count: int) -> Any:
    return reference_probabilities(np.stack([preprocess(drawn_tile(seed), contract=CONTRACT) for seed in range(count)]))


def test_arrays_of_any_size_are_resized_as_files_are(model: Model) -> None:
    answers = model.predict(tiles_of(9))
    np.testing.assert_allclose(answers.probabilities, expected(9), atol=1e-5)
    assert [answer.pred for answer in answers] == [CONTRACT.class_names[at] for at in expected(9).argmax(axis=1)]
    assert [(answer.height, answer.width) for answer in answers] == [tile.shape[:2] for tile in tiles_of(9)]
    assert all(answer.ok and answer.path is None for answer in answers)
    assert answers[0].confidence == max(answers[0].probabilities)
    assert answers[0].category == next(item.category for item in CONTRACT.classes if item.name == answers[0].pred)


@pytest.mark.timeout(60)
def test_threads_take_turns(model: Model) -> None:
    def right(seed: int) -> bool:
        pixels = np.stack([preprocess(drawn_tile(seed), contract=CONTRACT)] * 4)
        wanted = reference_probabilities(pixels)
        return all(np.allclose(model.predict(pixels).probabilities, wanted, atol=1e-5) for _ in range(60))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(right, range(4)))


def test_one_array_of_the_input_size(model: Model) -> None:
    pixels = np.stack([preprocess(drawn_tile(seed), contract=CONTRACT) for seed in range(5)])
    np.testing.assert_allclose(model.predict(pixels).probabilities, expected(5), atol=1e-5)
    turned = np.asfortranarray(pixels)
    np.testing.assert_array_equal(model.predict(turned).probabilities, model.predict(pixels).probabilities)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), "is float32: pass uint8 from 0 to 255"),
        ([np.zeros((32, 32, 3), np.float64)], "is float64: pass uint8"),
        ([np.zeros((40, 30, 3), bool)], "is bool: pass uint8"),
        (np.zeros((2, 40, 32, 3), np.uint8), r"tiles of \(40, 32\), this model takes \(32, 32\): pass a list"),
        (np.zeros((32, 32, 3), np.uint8), r"pass a list, model.predict\(\[image\]\)"),
        (np.zeros((2, 32, 32, 4), np.uint8), "has 4 channels: pass RGB"),
        ([np.zeros((32, 32, 4), np.uint8)], "has 4 channels: pass RGB"),
        ([np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)], r"image 1 has the shape \(32, 32\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"has the shape \(3, 32, 32\)"),
        ([np.zeros((0, 32, 3), np.uint8)], "at least one pixel"),
        ([], "no images"),
        (np.zeros((0, 32, 32, 3), np.uint8), "no images"),
        ([drawn_tile(1)], "is a bytes: pass numpy arrays"),
        (["tile.png"], "is a str: pass numpy arrays"),
    ],
)
def test_what_is_no_rgb_tile_is_refused_with_the_remedy(model: Model, images: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        model.predict(images)
    assert isinstance(caught.value, ValueError)


def test_files_as_strings_and_paths_with_a_row_for_those_that_fail(model: Model, tmp_path: Path) -> None:
    good, broken, missing = tmp_path / "good.png", tmp_path / "broken.jpg", tmp_path / "missing.png"
    good.write_bytes(drawn_tile(0))
    broken.write_bytes(drawn_tile(1, ".jpg")[:-40])
    answers = model.predict_files([good, str(broken), missing, str(good), good, good])
    assert [answer.ok for answer in answers] == [True, False, False, True, True, True]
    assert [answer.path for answer in answers[:3]] == [str(good), str(broken), str(missing)]
    assert [(answers[at].error or "").partition(":")[0] for at in (1, 2)] == ["truncated", "unreadable"]
    assert (answers[1].pred, answers[1].confidence, answers[1].probabilities) == (None, None, ())
    np.testing.assert_allclose(answers.probabilities[0], expected(1)[0], atol=1e-5)
    assert np.isnan(answers.probabilities[1]).all()


def test_no_files_are_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="no files"):
        model.predict_files([])


def test_relative_files_are_those_of_the_working_folder(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tile.png").write_bytes(drawn_tile(3))
    monkeypatch.chdir(tmp_path)
    (answer,) = model.predict_files(["tile.png"])
    assert (answer.ok, answer.path) == (True, "tile.png")


@pytest.mark.parametrize(
    ("asked", "options"),
    [({}, []), ({"slide": "{slide}/*", "hash_tiles": True}, ["--slide", "{slide}/*", "--hash"])],
    ids=["plain", "options"],
)
def test_a_folder_gives_the_very_table_of_the_command(
    bundle: Bundle, tiles: Path, out: Path, tmp_path: Path, asked: RunOptions, options: list[str]
) -> None:
    options = [*options, "--model", str(bundle.root), "--precision", "fp32", "--backend", "onnxruntime-cpu", "-b", "4"]
    code = "from cervix_engine.cli.batch import main; main()"
    command = [sys.executable, "-c", code, str(tiles), "--out", str(tmp_path / "by_command.csv"), *options]
    subprocess.run(command, check=True, capture_output=True, timeout=300, env=environment())
    with Model.open(bundle.root, precision="fp32", backend="onnxruntime-cpu", batch_size=4) as model:
        record = model.predict_folder(str(tiles), out=str(out), **asked)
        assert (record.status, record.ok, record.failed) == ("done", 50, 0)
        with pytest.raises(OutputExistsError):
            model.predict_folder(tiles, out=out)
        assert model.predict(tiles_of(1))[0].ok, "the model is still loaded"
    assert out.read_bytes() == (tmp_path / "by_command.csv").read_bytes()


def test_a_files_answer_is_its_row(bundle: Bundle, tiles: Path, out: Path) -> None:
    with Model.open(bundle.root, precision="fp32", batch_size=4) as model:
        model.predict_folder(tiles, out=out)
        rows = read_table(out)
        answers = model.predict_files(tiles / row["path"] for row in rows)
    for row, answer in zip(rows, answers, strict=True):
        assert (row["pred"], row["confidence"], row["category"]) == (
            answer.pred,
            f"{answer.confidence:.6f}",
            answer.category,
        )


def test_tables_for_arrow_and_pandas(model: Model, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    answers = model.predict_files([tmp_path / "none.png"])
    table = answers.to_arrow()
    assert isinstance(table, pyarrow.Table)
    assert table.column_names[:5] == ["path", "height", "width", "pred", "confidence"]
    assert [name for name in table.column_names if name.startswith("prob_")] == [
        f"prob_{name}" for name in CONTRACT.class_names
    ]
    pandas = pytest.importorskip("pandas")
    assert isinstance(answers.to_pandas(), pandas.DataFrame)


def test_a_pinned_bundle(bundle: Bundle) -> None:
    with Model.open(bundle.root, precision="fp32", expect_digest=bundle.digest) as model:
        assert model.info.precision == "fp32"
        model.close()


def test_there_is_nothing_else_behind_the_door() -> None:
    assert not hasattr(cervix_engine, "Modell")
    code = "import cervix_engine, sys; assert not {'cv2', 'numpy'} & set(sys.modules); cervix_engine.Model"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_notebook_runs_as_written(bundle: Bundle, tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "docs" / "python.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    folder = tmp_path / "tiles"
    folder.mkdir()
    for seed in range(6):
        (folder / f"tile_{seed}.png").write_bytes(drawn_tile(seed))
    (folder / "broken.jpg").write_bytes(encoded(".jpg", np.zeros((40, 40, 3), np.uint8))[:-30])
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "cervix").symlink_to(bundle.root)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "7 tiles, 6 predicted, 1 failed" in done.stdout
    assert (tmp_path / "preds.csv").is_file()
