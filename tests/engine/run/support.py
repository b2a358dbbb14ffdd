"""A tiny real model in a sealed bundle, drawn tiles, a spy for backends, and the plain loop that a run must equal."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import cv2
import numpy as np
import numpy.typing as npt
from click.testing import Result

from cervix_engine.backends.base import Backend, BackendInfo, Synchronous
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.golden import write_golden
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import TileError, TileReadError
from cervix_engine.run.assembly.chunks import CHUNK_ROWS
from cervix_engine.run.batch import RunSetup
from cervix_engine.run.session import Choose, Chosen, SessionRequest, choose_backend
from cervix_engine.run.shards import ShardSize
from cervix_engine.run.transaction import TableTransaction
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.preprocess import preprocess, preprocess_into, read_tile
from cervix_engine.tiles.sources.source import TileSource
from cervix_engine.tiles.tile import Outcome, Prediction, TileFailure, TileRef, TileSize
from cervix_engine.values import Pixels, Probabilities

CONTRACT = ModelContract(classes=SIPAKMED_CLASSES, input_size=(32, 32))
CLASS_NAMES = CONTRACT.class_names
GOLDEN_TILES = 24
FILTERS = 16


# What a finished run leaves beside the tiles: nothing else, and nothing hidden but the lock's empty file.
def finished_files(table: str) -> set[str]:
    return {table, f"{table}.run.json", f"{table}.rows", f"{table}.stamps"}


FINISHED = finished_files("preds.csv")

TESTS = Path(__file__).parents[2]

# How long to wait for what takes milliseconds on a quiet machine: a test fails for what it sees, not for its speed.
PATIENCE_S = 200.0

STREAM_THREADS = {"cervix-list", "cervix-decode", "cervix-infer"}

Array = npt.NDArray[Any]

# All bytes of a table: of its file, or of each file of its folder by name.
Content = bytes | dict[str, bytes]

# Runs the command with these options; keywords replace its tiles, out, model and setup.
Invoke = Callable[..., Result]


def drawn_tile(seed: int, suffix: str = ".png") -> bytes:
    """A tile of 20 to 90 px: two ellipses of their own colours on a noisy ground, encoded for `suffix`."""
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(20, 91, 2))
    ground = random.integers(90, 230, 3)
    tile = (ground + random.integers(-20, 21, (height, width, 3))).clip(0, 255).astype(np.uint8)
    for scale in (2.2, 5.0):
        axes = (max(2, int(width / scale)), max(2, int(height / scale)))
        colour = [int(value) for value in random.integers(0, 256, 3)]
        cv2.ellipse(tile, (width // 2, height // 2), axes, float(random.integers(180)), 0, 360, colour, -1)
    return encoded(suffix, tile)


def encoded(suffix: str, pixels: Array) -> bytes:
    """`pixels` in BGR, as the file format of `suffix`."""
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


def draw_folder(root: Path, count: int, *, seed: int = 1) -> Path:
    """`count` tiles in nested folders, JPEG and PNG mixed, no two alike."""
    folders = ("", "slide_a", "slide_b/region 1", "slide_b/region 2")
    for index in range(count):
        suffix = (".jpg", ".png", ".JPG", ".bmp")[index // 3 % 4]
        folder = root / folders[index % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"tile_{index:05d}{suffix}").write_bytes(drawn_tile(1000 * seed + index, suffix.lower()))
    return root


@lru_cache(maxsize=1)
def weights() -> dict[str, Array]:
    """Fixed random weights whose classes are about equally frequent on drawn tiles."""
    random = np.random.default_rng(11)
    kernel = random.normal(size=(FILTERS, 3, 3, 3)).astype(np.float32)
    shift = random.normal(size=FILTERS).astype(np.float32)
    tiles = np.stack([preprocess(drawn_tile(seed), contract=CONTRACT) for seed in range(5000, 5040)])
    features = _features(tiles, kernel, shift)
    head = random.normal(size=(len(CLASS_NAMES), FILTERS)) / (0.05 + features.std(axis=0))
    bias = -(head @ features.mean(axis=0))
    return {"kernel": kernel, "shift": shift, "head": head.astype(np.float32), "bias": bias.astype(np.float32)}


def reference_probabilities(pixels: Pixels) -> Probabilities:
    """What the tiny model answers, computed in float64 by NumPy alone."""
    held = weights()
    logits = _features(pixels, held["kernel"], held["shift"]) @ held["head"].astype(np.float64).T + held["bias"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def _features(pixels: Pixels, kernel: Array, shift: Array) -> Array:
    scaled = np.pad(pixels / 255.0, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(scaled, (3, 3), axis=(1, 2))
    convolved = np.tensordot(windows, kernel.astype(np.float64), axes=((3, 4, 5), (1, 2, 3))) + shift
    return np.asarray(np.maximum(convolved, 0).mean(axis=(1, 2)))


def tiny_onnx(
    *, swapped: bool = False, bgr: bool = False, scaled: bool = True, classes: int = 5, half: bool = False
) -> bytes:
    """The tiny model as ONNX: `uint8 (N, 32, 32, 3)` "tiles" to `float32 (N, classes)` "probabilities".

    Args:
        swapped: fault: the first two classes change places.
        bgr: fault: it expects blue first.
        scaled: whether pixels are divided by 255; leaving that out is a fault.
        classes: fewer than 5 is a fault.
        half: compute in float16.
    """
    import onnx
    from onnx import helper, numpy_helper

    number = np.float16 if half else np.float32
    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    held = weights()
    order = [1, 0, 2, 3, 4] if swapped else list(range(classes))
    constants = {
        "scale": np.array(1 / 255 if scaled else 1.0),
        "kernel": held["kernel"][:, ::-1] if bgr else held["kernel"],
        "shift": held["shift"],
        "head": held["head"][order],
        "bias": held["bias"][order],
    }
    nodes = [
        helper.make_node("Cast", ["tiles"], ["numbers"], to=kind),
        helper.make_node("Mul", ["numbers", "scale"], ["values"]),
        helper.make_node("Transpose", ["values"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel", "shift"], ["convolved"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["convolved"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["averages"]),
        helper.make_node("Flatten", ["averages"], ["features"]),
        helper.make_node("Gemm", ["features", "head", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["answers"], axis=1),
        helper.make_node("Cast", ["answers"], ["probabilities"], to=onnx.TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("tiles", onnx.TensorProto.UINT8, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(np.ascontiguousarray(value, number), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def make_bundle(
    root: Path, *, model: bytes | None = None, answer: Callable[[Pixels], Probabilities] = reference_probabilities
) -> Bundle:
    """Seal a bundle around `model` (default: the faultless tiny one) at `root`, with golden tiles as `answer` says."""
    root.mkdir(parents=True)
    tiles = [drawn_tile(seed, (".png", ".jpg")[seed % 2]) for seed in range(GOLDEN_TILES)]
    pixels = np.stack([preprocess(data, contract=CONTRACT) for data in tiles])
    write_golden(root, tiles, labels=[None] * len(tiles), probabilities=answer(pixels), contract=CONTRACT)
    CONTRACT.save(root / "contract.json")
    (root / "model.keras").write_bytes(b"stands for the Keras model")
    (root / "model.onnx").write_bytes(model or tiny_onnx())
    return seal(root)


def make_fake_bundle(root: Path) -> Bundle:
    """A bundle whose golden answers are the fake backend's."""
    return make_bundle(root, answer=FakeBackend().infer)


def choose_fake(_: SessionRequest) -> Chosen:
    """The fake backend, whatever is asked."""
    return Chosen(FakeBackend())


class Killed(BaseException):
    """Stands for a kill: nothing in the engine catches it, and a run that it ends writes nothing more."""


def run_setup(
    *,
    choose: Choose = choose_backend,
    around: Callable[[Backend], Backend] = lambda backend: backend,
    shard: ShardSize = ShardSize(),  # noqa: B008 - frozen
    chunk_rows: int = CHUNK_ROWS,
    stop_at: str = "",
    error: BaseException | None = None,
    once_listed: Callable[[], object] | None = None,
) -> RunSetup:
    """What a run works with: a backend within another one, and short shards.

    Args:
        choose: gives the backend.
        around: puts another one around it.
        shard: when a shard is full.
        chunk_rows: of each file of a folder.
        stop_at: the method of the transaction in whose place `error` is raised (default: an interruption).
        once_listed: called when the tiles have been listed.
    """

    def chosen(request: SessionRequest) -> Chosen:
        found = choose(request)
        return Chosen(around(found.backend), found.certificate)

    def stop(*_: object, **__: object) -> NoReturn:
        raise error or KeyboardInterrupt

    def list_tiles(table: TableTransaction, source: TileSource) -> Listing:
        listing = TableTransaction.list_tiles(table, source)
        if once_listed:
            once_listed()
        return listing

    steps: dict[str, Callable[..., Any]] = {"list_tiles": list_tiles}
    if stop_at:
        steps[stop_at] = stop
    if isinstance(error, Killed):
        steps["_telling_why"] = lambda _: nullcontext()
    watched = type("WatchedTable", (TableTransaction,), steps)
    return RunSetup(chosen, partial(watched, shard_size=shard, chunk_rows=chunk_rows))


def program_with_shards(tiles: int) -> str:
    """The source of `cervix-batch` with shards of so many tiles."""
    return (
        "from functools import partial\n"
        "from cervix_engine.cli.batch import main\n"
        "from cervix_engine.run.batch import RunSetup\n"
        "from cervix_engine.run.shards import ShardSize\n"
        "from cervix_engine.run.transaction import TableTransaction\n"
        f"main(obj=RunSetup(open_table=partial(TableTransaction, shard_size=ShardSize(tiles={tiles}))))\n"
    )


def work_folder(out: Path) -> Path:
    """Where a run on its way to `out` keeps its files."""
    return out.with_name(f".{out.name}.cervix")


class SpyBackend(Synchronous):
    """Passes batches on to another backend and notes what it saw; can be told to fail or to answer wrongly.

    Only batches of a stream are counted: the golden replay at a run's start comes from another thread.

    Attributes:
        digests: SHA-256 of each batch's pixels, padding included, in order.
        buffers: the addresses of the arrays that were seen.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        fail: dict[int, BaseException] | None = None,
        answers: dict[int, Probabilities] | None = None,
    ) -> None:
        self._inner = inner
        self._fail = fail or {}
        self._answers = answers or {}
        self.digests: list[str] = []
        self.buffers: set[int] = set()

    @property
    def info(self) -> BackendInfo:
        return self._inner.info

    def infer(self, pixels: Pixels) -> Probabilities:
        if threading.current_thread().name != "cervix-infer":
            return self._inner.infer(pixels)
        call = len(self.digests)
        self.digests.append(hashlib.sha256(pixels.tobytes()).hexdigest())
        self.buffers.add(pixels.ctypes.data)
        if call in self._fail:
            raise self._fail[call]
        return self._answers[call] if call in self._answers else self._inner.infer(pixels)

    def __enter__(self) -> SpyBackend:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)


def plain_batches(
    root: Path, tiles: Sequence[TileRef], batch_size: int
) -> list[tuple[Pixels, list[TileSize | TileFailure]]]:
    """Fixed batches made one tile after another: zero-padded pixels, and a size or a failure for each tile."""
    batches = []
    for start in range(0, len(tiles), batch_size):
        chosen = tiles[start : start + batch_size]
        pixels = np.zeros((batch_size, *CONTRACT.input_size, 3), np.uint8)
        decoded: list[TileSize | TileFailure] = []
        for position, tile in enumerate(chosen):
            decoded.append(_decoded_into(pixels[position], root / tile.path))
        batches.append((pixels, decoded))
    return batches


def _decoded_into(place: Pixels, path: Path) -> TileSize | TileFailure:
    try:
        return preprocess_into(place, read_tile(path), contract=CONTRACT)
    except TileError as error:
        place[...] = 0
        return TileFailure("read" if isinstance(error, TileReadError) else "decode", str(error))


def plain_outcomes(root: Path, tiles: Sequence[TileRef], backend: Backend, batch_size: int) -> list[Outcome]:
    """The oracle: what a run must give, by a plain loop without threads, slots or channels."""
    outcomes: list[Outcome] = []
    for pixels, decoded in plain_batches(root, tiles, batch_size):
        answers = backend.infer(pixels)
        for what, answer in zip(decoded, answers, strict=False):
            if isinstance(what, TileFailure):
                outcomes.append(what)
            else:
                outcomes.append(Prediction(what, tuple(float(value) for value in answer)))
    return outcomes


def refs(names: Sequence[str]) -> tuple[TileRef, ...]:
    """Tiles of these names, in the order given."""
    return tuple(TileRef(index, name) for index, name in enumerate(names))


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cervix_threads() -> list[str]:
    """The names of a stream's threads that are alive."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name in STREAM_THREADS)


def threads_end() -> bool:
    """Whether all of a stream's threads end soon, as they do when nothing holds them."""
    deadline = time.monotonic() + PATIENCE_S
    while cervix_threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    return not cervix_threads()


def environment() -> dict[str, str]:
    """For a program that imports this module."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def content(table: Path) -> Content:
    """All bytes of a table: of its file, or of each file of its folder by name."""
    if table.is_dir():
        return {path.name: path.read_bytes() for path in sorted(table.iterdir())}
    return table.read_bytes()


def beside(out: Path) -> set[str]:
    """What lies in a table's folder, without the empty lock file that the kernel's lock needs to stay."""
    return {name for name in os.listdir(out.parent) if name != f".{out.name}.lock"}  # noqa: PTH208 - names wanted


def done_event(printed: str | bytes) -> dict[str, Any]:
    """The run's report that `--json` printed last."""
    event: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert event["event"] == "done"
    report: dict[str, Any] = event["report"]
    return report
