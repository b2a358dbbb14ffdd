"""The ways from a folder of tiles to predictions that are raced: each is made ready once, and then runs passes.

All take the same files, network and runtime settings; only the engine also writes a durable table.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cervix_engine.backends import Backend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.machine import usable_cpus
from cervix_engine.run.record import Provenance
from cervix_engine.run.session import Session
from cervix_engine.run.stream.stream import batches_of
from cervix_engine.run.transaction import TableTransaction
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.values import Pixels

Run = Callable[[], float]


def tile_files(tiles: Path) -> list[Path]:
    """Every tile below a folder, in order."""
    return sorted(path for path in tiles.rglob("*") if path.is_file())


def encode_anew(tiles: Path, *, side: int, suffix: str) -> None:
    """Replace every tile by one of `side` pixels in the format of `suffix`."""
    for path in tile_files(tiles):
        pixels = cv2.imread(str(path))
        assert pixels is not None, f"{path} cannot be decoded"
        path.unlink()
        cv2.imwrite(str(path.with_suffix(suffix)), cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA))


def engine(tiles: Path, bundle: Bundle, backend: Backend, *, batch_size: int, workers: int | None = None) -> Run:
    """The engine, from discovery to the committed table."""
    out = tiles.parent / "preds.csv"
    provenance = Provenance(bundle.digest, None, 0.0, 0.0)
    session = Session(bundle.contract, backend, batch_size, workers, provenance)

    def run() -> float:
        began = time.perf_counter()
        out.unlink(missing_ok=True)
        with TableTransaction(out) as table:
            listing = table.list_tiles(Folder(tiles))
            with table.begin(session.identity(listing), listing, backend=backend.info, provenance=provenance):
                predicted = session.predict(batches_of(listing, batch_size), source=listing.source)
                with table.shards(RowFormat(bundle.contract)) as shards, closing(predicted) as results:
                    for result in results:
                        shards.write(result)
                table.require_balance()
                table.assemble()
                record = table.commit()
        return record.found / (time.perf_counter() - began)

    return run


def plain_loop(tiles: Path, backend: Backend, *, contract: ModelContract, batch_size: int) -> Run:
    """What one writes first: read, decode, resize and infer in one loop, with OpenCV's own threads."""
    files = tile_files(tiles)

    def run() -> float:
        cv2.setNumThreads(usable_cpus())
        began = time.perf_counter()
        for start in range(0, len(files), batch_size):
            batch = [_opencv_tile(path, contract) for path in files[start : start + batch_size]]
            backend.infer(np.stack(batch))
        return len(files) / (time.perf_counter() - began)

    return run


def spdl(tiles: Path, backend: Backend, *, contract: ModelContract, batch_size: int) -> Run:
    """SPDL's pipeline feeding the same session; it decodes as the plain loop does, and not with its own loader."""
    from spdl.pipeline import PipelineBuilder

    files = [str(path) for path in tile_files(tiles)]

    def load(path: str) -> Pixels:
        return _opencv_tile(Path(path), contract)

    def run() -> float:
        cv2.setNumThreads(1)
        began = time.perf_counter()
        pipeline = (
            PipelineBuilder()
            .add_source(files)
            .pipe(load, concurrency=usable_cpus(), output_order="input")
            .aggregate(batch_size)
            .pipe(lambda batch: np.stack(batch))
            .add_sink(3)
            .build(num_threads=usable_cpus())
        )
        done = 0
        with pipeline.auto_stop():
            for batch in pipeline:
                done += len(backend.infer(batch))
        return done / (time.perf_counter() - began)

    return run


def process_pool(tiles: Path, backend: Backend, *, contract: ModelContract, batch_size: int) -> Run:
    """What one writes next: a pool of processes, each of which fills an array with a batch and sends it to the loop."""
    files = tile_files(tiles)
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    context = multiprocessing.get_context("forkserver")
    pool = context.Pool(usable_cpus(), initializer=cv2.setNumThreads, initargs=(1,))

    def run() -> float:
        began = time.perf_counter()
        done = 0
        for pixels in pool.imap(partial(_opencv_batch, contract=contract), batches):
            done += len(backend.infer(pixels))
        return done / (time.perf_counter() - began)

    return run


def keras_folder(tiles: Path, bundle_root: Path, *, batch_size: int) -> Run:
    """`image_dataset_from_directory` and `predict`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import tensorflow as tf

    model = keras.models.load_model(bundle_root / "model.keras", safe_mode=True)
    height, width = model.input_shape[1:3]

    def dataset() -> Any:
        images = keras.utils.image_dataset_from_directory(
            tiles, labels=None, image_size=(height, width), batch_size=batch_size, shuffle=False, verbose=False
        )
        return images.map(lambda pixels: tf.cast(pixels, tf.uint8)).prefetch(tf.data.AUTOTUNE)

    model.predict(dataset().take(1), verbose=0)  # compiles

    def run() -> float:
        began = time.perf_counter()
        rows = len(model.predict(dataset(), verbose=0))
        return rows / (time.perf_counter() - began)

    return run


def small_network(size: tuple[int, int], *, classes: int, channels: int) -> bytes:
    """A network of one wide convolution with a stride of 4; `channels` decide what it costs. ONNX bytes.

    Its answers mean nothing: it stands for any network whose inference costs about as much as decoding.
    """
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    constants = {
        "scale": np.array(1 / 255, np.float32),
        "kernel": random.normal(size=(channels, 3, 7, 7), scale=0.05).astype(np.float32),
        "head": random.normal(size=(classes, channels), scale=0.1).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["tiles"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "scale"], ["values"]),
        helper.make_node("Transpose", ["values"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["convolved"], strides=[4, 4]),
        helper.make_node("Relu", ["convolved"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["averages"]),
        helper.make_node("Flatten", ["averages"], ["features"]),
        helper.make_node("Gemm", ["features", "head"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["N", *size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def matched_network(contract: ModelContract, *, prepare: float, open_model: Callable[[bytes], Backend]) -> bytes:
    """The small network whose model alone is nearest to `prepare` tiles/s on this machine."""

    def distance(channels: int) -> float:
        with open_model(small_network(contract.input_size, classes=len(contract.classes), channels=channels)) as model:
            return abs(math.log(_model_rate(model, contract) / prepare))

    best = min(_CHANNELS, key=distance)
    return small_network(contract.input_size, classes=len(contract.classes), channels=best)


_CHANNELS = (8, 16, 32, 64, 128, 256)


def _model_rate(backend: Backend, contract: ModelContract) -> float:
    batch = np.zeros((32, *contract.input_size, 3), np.uint8)
    backend.infer(batch)
    return max(_rates(backend, batch))


def _rates(backend: Backend, batch: Pixels) -> Iterator[float]:
    for _ in range(5):
        began = time.perf_counter()
        backend.infer(batch)
        yield len(batch) / (time.perf_counter() - began)


def _opencv_batch(files: list[Path], *, contract: ModelContract) -> Pixels:
    pixels = np.empty((len(files), *contract.input_size, 3), np.uint8)
    for out, path in zip(pixels, files, strict=True):
        out[...] = _opencv_tile(path, contract)
    return pixels


def _opencv_tile(path: Path, contract: ModelContract) -> Pixels:
    """By OpenCV alone, as one would write it."""
    height, width = contract.input_size
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None, f"{path} cannot be decoded"
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
