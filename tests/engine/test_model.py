"""The door for Python: it answers as a run does, and refuses what is no RGB tile, on every backend."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cervix_engine
from cervix_engine import Model
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import OutputExistsError, UsageError
from cervix_engine.model.turns import Turns
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


@pytest.fixture(scope="module")
def opened(bundle: Bundle) -> Iterator[Model]:
    with Model.open(bundle.root, precision="fp32", backend="onnxruntime-cpu", batch_size=4) as model:
        yield model


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
        (None, "the images are None: pass a list of numpy arrays"),
        (5, "the images are a int: pass a list"),
        (b"tile", "the images are a bytes: pass a list"),
        (Path("tile.png"), "the images are a PosixPath: pass a list"),
        (Image.new("RGB", (32, 32)), "the images are a Image: pass a list"),
        (np.array(3, np.uint8), "the images are a ndarray: pass a list"),
        ([np.ma.masked_array(np.zeros((32, 32, 3), np.uint8), mask=True)], "image 0 is a masked array"),
        (np.ma.masked_array(np.zeros((2, 32, 32, 3), np.uint8), mask=True), "image 0 is a masked array"),
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


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ([], "no files"),
        ("a/b.png", "the paths are a str: pass a list of paths"),
        (b"a/b.png", "the paths are a bytes: pass a list"),
        (Path("a/b.png"), "the paths are a PosixPath: pass a list"),
        (None, "the paths are None: pass a list"),
        (["a.png", None], "path 1 is None: pass a path"),
        ([5], "path 0 is a int: pass a path"),
    ],
)
def test_what_is_no_list_of_paths_is_refused(model: Model, paths: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        model.predict_files(paths)


def test_a_path_in_bytes_is_one(model: Model, tmp_path: Path) -> None:
    (tmp_path / "tile.png").write_bytes(drawn_tile(3))
    (answer,) = model.predict_files([bytes(tmp_path / "tile.png")])
    assert (answer.ok, answer.path) == (True, str(tmp_path / "tile.png"))


NO_WORKERS = "expected a whole number from 1 to 256, or 'auto'"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"workers": -1}, f"workers=-1: {NO_WORKERS}"),
        ({"workers": 0}, f"workers=0: {NO_WORKERS}"),
        ({"workers": 257}, f"workers=257: {NO_WORKERS}"),
        ({"workers": 1.5}, f"workers=1.5: {NO_WORKERS}"),
        ({"workers": True}, f"workers=True: {NO_WORKERS}"),
        ({"workers": None}, f"workers=None: {NO_WORKERS}"),
        ({"workers": "many"}, f"workers='many': {NO_WORKERS}"),
        ({"budget": "some"}, "budget='some': expected a count such as 100, or a share such as '10%'"),
        ({"budget": 0.1}, "budget=0.1: expected a count"),
        ({"grid": "224"}, "grid='224': expected GridRules"),
        ({"shard": "3/2"}, "expected such as 3/8"),
        ({"shard": 2}, "shard=2: expected '3/8'"),
        ({"slide": 5}, "slide is a int: pass a path"),
    ],
)
@pytest.mark.timeout(60)
def test_options_of_a_folder_that_cannot_be_are_refused(
    opened: Model, tiles: Path, out: Path, asked: Any, reason: str
) -> None:
    with pytest.raises(UsageError) as caught:
        opened.predict_folder(tiles, out=out, **asked)
    assert reason in str(caught.value)
    assert list(out.parent.iterdir()) == [], "nothing was begun"


@pytest.mark.parametrize(("folder", "out"), [(None, "a.csv"), (["a.png"], "a.csv"), ("tiles", None), ("tiles", 5)])
def test_places_that_are_no_paths_are_refused(opened: Model, folder: Any, out: Any) -> None:
    with pytest.raises(UsageError, match="pass a path, as text"):
        opened.predict_folder(folder, out=out)


def test_options_as_the_command_line_writes_them(opened: Model, tiles: Path, out: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides.csv"
    names = sorted(path.relative_to(tiles).as_posix() for path in tiles.rglob("*.*") if path.is_file())
    slides.write_text("path,slide_id\n" + "".join(f"{name},all\n" for name in names))
    asked: dict[str, Any] = {"slide": slides, "budget": 3, "workers": np.int64(1), "shard": "1/2"}
    record = opened.predict_folder(bytes(tiles), out=out, **asked)
    assert record.status == "done"
    assert {row["slide_id"] for row in read_table(out)} == {"all"}
    took = record.provenance.arguments
    assert (took["budget"], took["shard"], took["workers"]) == ({"count": 3, "share": None}, "1/2", 1)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"batch_size": 0}, "batch_size=0: expected a whole number from 1 to 4096"),
        ({"batch_size": -3}, "batch_size=-3: expected"),
        ({"batch_size": 10**7}, "batch_size=10000000: expected"),
        ({"batch_size": 2.5}, "batch_size=2.5: expected"),
        ({"batch_size": True}, "batch_size=True: expected"),
        ({"batch_size": "many"}, "batch_size='many': expected"),
        ({"precision": "half"}, "precision='half': expected one of auto, fp32, bf16, fp16, int8"),
        ({"precision": None}, "precision=None: expected one of"),
        ({"device": None}, "device=None: expected auto, cpu, cuda"),
        ({"device": "gpu"}, "device=gpu: expected auto, cpu, cuda"),
        ({"path": None}, "the bundle is None: pass a path"),
        ({"path": 5}, "the bundle is a int: pass a path"),
    ],
)
def test_what_no_model_opens_with_is_refused(bundle: Bundle, asked: Any, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        Model.open(**{"path": bundle.root, **asked})
    assert reason in str(caught.value)


def test_a_closed_model_says_so(model: Model, tiles: Path, out: Path, tmp_path: Path) -> None:
    model.close()
    model.close()
    uses: list[Callable[[], object]] = [
        lambda: model.predict(tiles_of(1)),
        lambda: model.predict_files([tmp_path / "tile.png"]),
        lambda: model.predict_folder(tiles, out=out),
        model.__enter__,
    ]
    for use in uses:
        with pytest.raises(UsageError, match="this model is closed: open it again"):
            use()
    assert list(out.parent.iterdir()) == []


@pytest.mark.timeout(60)
def test_closing_waits_for_calls_of_other_threads() -> None:
    turns, freed = Turns(), threading.Event()
    with turns.call() as turn:
        closing = threading.Thread(target=turns.close, args=(freed.set,))
        closing.start()
        while turns.is_open:
            time.sleep(0.001)
        with turn:
            assert not freed.wait(0.05), "a call that has begun is answered in full"
        with pytest.raises(UsageError, match="closed"), turns.call():
            pass
        with pytest.raises(UsageError, match="this thread is predicting"):
            turns.close(freed.set)
    closing.join(30)
    assert freed.is_set()


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


def test_tables_have_the_same_types_whether_or_not_tiles_failed(opened: Model, tmp_path: Path) -> None:
    pyarrow, pandas = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    (tmp_path / "tile.png").write_bytes(drawn_tile(0))
    missing, good = tmp_path / "none.png", tmp_path / "tile.png"
    several = [opened.predict_files(paths) for paths in ([missing], [good], [good, missing])]
    several.append(opened.predict(tiles_of(2)))
    text, number, names = pyarrow.string(), pyarrow.float64(), [f"prob_{name}" for name in CONTRACT.class_names]
    expected_types = {
        "path": text,
        "height": pyarrow.int64(),
        "width": pyarrow.int64(),
        "pred": text,
        "confidence": number,
        "category": text,
        **dict.fromkeys(names, number),
        "error": text,
    }
    for answers in several:
        schema = answers.to_arrow().schema
        assert dict(zip(schema.names, schema.types, strict=True)) == expected_types
    frames = [answers.to_pandas() for answers in several]
    assert all(frame.dtypes.equals(frames[0].dtypes) for frame in frames)
    assert [str(frames[0].dtypes[name]) for name in ("height", "confidence", "pred")] == ["Int64", "float64", "string"]
    assert pandas.concat(frames)["height"].tolist()[1] == several[1][0].height
    assert frames[0]["pred"].isna().all()
    assert several[2].to_arrow().column("height").to_pylist() == [several[1][0].height, None]


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
