"""The door for Python: a bundle as an object that predicts arrays, files and folders.

    from cervix_engine import Model

    with Model.open("models/cervix") as model:
        answers = model.predict(images)                  # RGB arrays, uint8
        answers = model.predict_files(["a.png", "b.jpg"])
        record = model.predict_folder("slides/", out="preds.csv")

It is the same start, the same decoding and the same stream as `cervix-batch`; a folder's table has the same bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from cervix_engine.backends.base import BackendInfo
from cervix_engine.backends.device import Device
from cervix_engine.backends.lent import Lent
from cervix_engine.backends.selection import RequestedPrecision
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import DECIMALS, Category, ModelContract
from cervix_engine.errors import BackendUnavailableError, UsageError
from cervix_engine.files import local_path
from cervix_engine.run.batch import RunSetup, predict_folder
from cervix_engine.run.config import BatchConfig, RunOptions
from cervix_engine.run.record import RunRecord
from cervix_engine.run.session import Chosen, Session, SessionRequest, choose_backend, open_session
from cervix_engine.run.stream.stream import batches_of
from cervix_engine.table.decisions import Decisions
from cervix_engine.tiles.preprocess import resize_into
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import Outcome, TileFailure, TileRef
from cervix_engine.values import Pixels, Probabilities

if TYPE_CHECKING:
    import pandas
    import pyarrow

Name = str | os.PathLike[str]

# What only the answers of a model with an operating point have.
_DECISIONS = ("prob_abnormal", "abnormal", "review")


@dataclass(frozen=True, slots=True)
class TileAnswer:
    """What the model says of one tile, or why it says nothing.

    Attributes:
        path: as it was given; None for an array.
        height, width: of the tile in pixels, before the resize; None where it could not be decoded.
        pred: the most probable class; None where the tile failed, as are `confidence` and `category`.
        confidence: its probability.
        category: its clinical category; with an operating point, the most probable one.
        probabilities: in the order of `Answers.class_names`; empty where the tile failed.
        error: `kind: message` where the tile failed, else None.
        prob_abnormal, abnormal, review: what the operating point decides, as in a table; None where there is none, and
            where the tile failed.
    """

    path: str | None
    height: int | None
    width: int | None
    pred: str | None
    confidence: float | None
    category: Category | None
    probabilities: tuple[float, ...]
    error: str | None
    prob_abnormal: float | None = None
    abnormal: bool | None = None
    review: bool | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class Answers(Sequence[TileAnswer]):
    """One answer for each tile that was asked, in the same order; `is_decided` where there is an operating point."""

    class_names: tuple[str, ...]
    rows: tuple[TileAnswer, ...]
    is_decided: bool = False

    @overload
    def __getitem__(self, index: int) -> TileAnswer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TileAnswer]: ...
    def __getitem__(self, index: int | slice) -> TileAnswer | Sequence[TileAnswer]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def probabilities(self) -> Probabilities:
        """`float32 (N, classes)`; a failed tile's row is NaN."""
        nothing = (float("nan"),) * len(self.class_names)
        return np.array([row.probabilities or nothing for row in self.rows], np.float32)

    def columns(self) -> dict[str, list[Any]]:
        """By column, a value for each tile: those of `TileAnswer`, with `prob_<class>` for the probabilities."""
        table: dict[str, list[Any]] = {}
        for field in fields(TileAnswer):
            if field.name in _DECISIONS and not self.is_decided:
                continue
            if field.name != "probabilities":
                table[field.name] = [getattr(row, field.name) for row in self.rows]
                continue
            for number, name in enumerate(self.class_names):
                table[f"prob_{name}"] = [row.probabilities[number] if row.ok else None for row in self.rows]
        return table

    def to_pandas(self) -> pandas.DataFrame:
        """Raises BackendUnavailableError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise BackendUnavailableError("this needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.columns())

    def to_arrow(self) -> pyarrow.Table:
        """Raises BackendUnavailableError where pyarrow is not installed."""
        try:
            import pyarrow
        except ImportError as error:
            raise BackendUnavailableError("this needs pyarrow: pip install pyarrow") from error
        return pyarrow.table(self.columns())


class Model:
    """A loaded bundle. Threads that ask it take turns; `close`, or leaving `with`, frees the runtime.

    Made by `open`, which takes what `cervix-batch` takes.
    """

    def __init__(self, request: SessionRequest, chosen: Chosen, session: Session, held: ExitStack) -> None:
        self._request = request
        self._chosen = chosen
        self._session = session
        self._held = held
        self._turn = threading.Lock()

    @classmethod
    def open(
        cls,
        path: Name,
        *,
        precision: RequestedPrecision = "auto",
        device: str = "auto",
        backend: str | None = None,
        batch_size: int | None = None,
        expect_digest: str | None = None,
    ) -> Model:
        """Check a bundle's digests, load the fastest certified way to run it, and replay its golden tiles.

        Args:
            path: the bundle's folder.
            precision: `auto` (which is never `int8`), `fp32`, `bf16`, `fp16` or `int8`.
            device: `auto`, `cpu`, `cuda`, or GPUs by number such as `cuda:0,1`.
            backend: the runtime that must run it, such as `openvino`.
            batch_size: tiles computed at a time.
            expect_digest: hex SHA-256 that pins the bundle.

        Raises:
            UsageError: there is no bundle, or an argument is none of these.
            ContractError: the bundle was altered, or this machine decodes to other pixels than training did.
            BackendError: nothing here runs what is asked, or it answers otherwise than certified.
        """
        bundle = Bundle.open(local_path(path), expect_digest=expect_digest)
        request = SessionRequest(bundle, precision, backend, Device.parse(device), batch_size=batch_size)
        chosen = choose_backend(request)
        with ExitStack() as stack:
            session = stack.enter_context(open_session(request, choose=lambda _: chosen))
            return cls(request, chosen, session, stack.pop_all())

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the runtime. Closing twice does nothing."""
        self._held.close()

    @property
    def contract(self) -> ModelContract:
        """What inputs and outputs mean."""
        return self._session.contract

    @property
    def info(self) -> BackendInfo:
        """What runs, as read back from the runtime."""
        return self._session.backend.info

    def predict(self, images: Pixels | Sequence[Pixels]) -> Answers:
        """Predict tiles that are in memory already.

        Args:
            images: RGB pixels, 0 to 255, not scaled: a list of `uint8 (height, width, 3)` arrays of any size, which are
                resized as tiles from files are; or one `uint8 (N, height, width, 3)` array of the input size.

        Raises:
            UsageError: another dtype, rank, size or number of channels, or nothing at all; says what to do.
            InferenceError: the runtime failed.
        """
        tiles = images if isinstance(images, np.ndarray) else list(images)
        _require_tiles(tiles, self.contract)
        rows: list[TileAnswer] = []
        for start in range(0, len(tiles), self._session.batch_size):
            some = tiles[start : start + self._session.batch_size]
            pixels = np.empty((len(some), *self.contract.input_size, 3), np.uint8)
            for out, tile in zip(pixels, some, strict=True):
                resize_into(out, np.ascontiguousarray(tile))
            with self._turn:
                answers = self._session.infer(pixels).tolist()
            for tile, answer in zip(some, answers, strict=True):
                rows.append(self._row(None, tile.shape[0], tile.shape[1], tuple(answer)))
        return Answers(self.contract.class_names, tuple(rows), self.contract.operating_point is not None)

    def predict_files(self, paths: Iterable[Name]) -> Answers:
        """Read, decode and predict files: one answer for each, also for those that cannot be.

        Raises:
            UsageError: there is no path.
            InferenceError: the runtime failed.
        """
        names = [os.fspath(path) for path in paths]
        if not names:
            raise UsageError("no files: pass at least one path")
        source = Folder(Path(os.sep))
        # Joined to the root again by whoever reads; the working folder may change meanwhile.
        tiles = (TileRef(at, os.path.abspath(name).lstrip(os.sep)) for at, name in enumerate(names))  # noqa: PTH100
        rows: list[TileAnswer] = []
        batches = batches_of(tiles, self._session.batch_size)
        with self._turn, closing(self._session.predict(batches, source=source)) as results:
            for result in results:
                rows += map(self._answer, names[len(rows) :], result.outcomes)
        return Answers(self.contract.class_names, tuple(rows), self.contract.operating_point is not None)

    def predict_folder(self, folder: Name, *, out: Name, **options: Unpack[RunOptions]) -> RunRecord:
        """Predict every tile of a source into one durable table, as `cervix-batch` does; goes on with a partial run.

        Args:
            folder: the tiles: a folder, a list, an archive or an address, as `cervix-batch` takes them.
            out: the table: `.csv`, `.csv.gz`, `.jsonl` or `.parquet`.
            options: what `cervix-batch` takes too, such as `overwrite=True` or `slide="{slide}/tiles/*"`.

        Returns:
            The run's record, which lies beside the table too.

        Raises:
            CervixError: see `errors.py`; then there is no new table, and what was done is kept.
        """
        bundle, info = self._request.bundle, self.info
        config = BatchConfig(
            tiles=folder,
            out=Path(out),
            model=bundle.root,
            precision=info.precision,
            backend=info.backend,
            device=self._request.device,
            batch_size=self._session.batch_size,
            expect_digest=bundle.digest,
            **options,
        )
        lent = replace(self._chosen, backend=Lent(self._chosen.backend))
        with self._turn:
            return predict_folder(config, setup=RunSetup(choose=lambda _: lent))

    def _answer(self, path: str, outcome: Outcome) -> TileAnswer:
        if isinstance(outcome, TileFailure):
            return TileAnswer(path, None, None, None, None, None, (), outcome.reason)
        return self._row(path, outcome.size.height, outcome.size.width, outcome.probabilities)

    def _row(self, path: str | None, height: int, width: int, probabilities: tuple[float, ...]) -> TileAnswer:
        confidence = max(probabilities)
        best = self.contract.classes[probabilities.index(confidence)]
        if self.contract.operating_point is None:
            return TileAnswer(path, height, width, best.name, confidence, best.category, probabilities, None)
        decided = Decisions(self.contract)(probabilities)
        abnormal = decided.sums[self.contract.categories.index("abnormal")] / 10**DECIMALS
        decisions = (abnormal, decided.abnormal, decided.review)
        return TileAnswer(path, height, width, best.name, confidence, decided.category, probabilities, None, *decisions)


def _require_tiles(tiles: Pixels | list[Pixels], contract: ModelContract) -> None:
    """Raise UsageError where a model would answer to something that is no RGB tile."""
    if isinstance(tiles, np.ndarray):
        if tiles.ndim == 3:
            raise UsageError(f"one image of shape {tiles.shape}: pass a list, model.predict([image])")
        if tiles.ndim == 4 and tiles.shape[3] == 3 and tiles.shape[1:3] != contract.input_size:
            raise UsageError(
                f"tiles of {tiles.shape[1:3]}, this model takes {contract.input_size}: pass a list, whose arrays are "
                "resized as in training"
            )
    if len(tiles) == 0:
        raise UsageError("no images: pass at least one")
    for at, tile in enumerate(tiles):
        if objection := _objection(tile):
            raise UsageError(f"image {at} {objection}")


def _objection(tile: object) -> str | None:
    if not isinstance(tile, np.ndarray):
        return f"is a {type(tile).__name__}: pass numpy arrays, uint8 (height, width, 3)"
    if tile.dtype != np.uint8:
        return f"is {tile.dtype}: pass uint8 from 0 to 255, as decoded; scaling is inside the model"
    if tile.ndim != 3:
        return f"has the shape {tile.shape}, expected (height, width, 3)"
    if tile.shape[2] == 4:
        return "has 4 channels: pass RGB, without alpha, in this order: image[..., :3] of RGBA, [..., 2::-1] of BGRA"
    if tile.shape[2] != 3 or 0 in tile.shape:
        return f"has the shape {tile.shape}, expected (height, width, 3) and at least one pixel"
    return None
