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
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Unpack

import numpy as np

from cervix_engine.backends.base import BackendInfo
from cervix_engine.backends.device import Device
from cervix_engine.backends.lent import Lent
from cervix_engine.backends.selection import RequestedPrecision
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import DECIMALS, ModelContract
from cervix_engine.files import local_path
from cervix_engine.model.answers import Answers, TileAnswer
from cervix_engine.model.given import Name, path_text, path_texts, plain_number, run_options, tiles_of
from cervix_engine.model.turns import Turns
from cervix_engine.run.batch import RunSetup, predict_folder
from cervix_engine.run.config import BatchConfig, RunOptions
from cervix_engine.run.record import RunRecord
from cervix_engine.run.session import Chosen, Session, SessionRequest, choose_backend, open_session
from cervix_engine.run.sizes import require_sizes
from cervix_engine.run.stream.stream import batches_of
from cervix_engine.run.tuning import Auto
from cervix_engine.table.decisions import Decisions
from cervix_engine.tiles.preprocess import resize_into
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import Outcome, TileFailure, TileRef
from cervix_engine.values import Pixels


class Model:
    """A loaded bundle. Threads that ask it take turns; `close`, or leaving `with`, frees the runtime, once and for all.

    Made by `open`, which takes what `cervix-batch` takes.
    """

    def __init__(self, request: SessionRequest, chosen: Chosen, session: Session, held: ExitStack) -> None:
        self._request = request
        self._chosen = chosen
        self._session = session
        self._held = held
        self._turns = Turns()

    @classmethod
    def open(
        cls,
        path: Name,
        *,
        precision: RequestedPrecision = "auto",
        device: str = "auto",
        backend: str | None = None,
        batch_size: int | Auto | None = None,
        expect_digest: str | None = None,
    ) -> Model:
        """Check a bundle's digests, load the fastest certified way to run it, and replay its golden tiles.

        Args:
            path: the bundle's folder.
            precision: `auto` (which is never `int8`), `fp32`, `bf16`, `fp16` or `int8`.
            device: `auto`, `cpu`, `cuda`, or GPUs by number such as `cuda:0,1`.
            backend: the runtime that must run it, such as `openvino`.
            batch_size: tiles computed at a time, 1 to 4096; `auto` measures; None takes 32, or an engine's usual one.
            expect_digest: hex SHA-256 that pins the bundle.

        Raises:
            UsageError: there is no bundle, or an argument is none of these.
            ContractError: the bundle was altered, or this machine decodes to other pixels than training did.
            BackendError: nothing here runs what is asked, or it answers otherwise than certified.
        """
        where = Device.parse(device, option="device=")
        require_sizes(batch_size=(tiles := plain_number(batch_size)), workers="auto")
        bundle = Bundle.open(local_path(path_text(path, what="the bundle")), expect_digest=expect_digest)
        request = SessionRequest(bundle, precision, backend, where, batch_size=tiles)
        chosen = choose_backend(request)
        with ExitStack() as stack:
            session = stack.enter_context(open_session(request, choose=lambda _: chosen))
            return cls(request, chosen, session, stack.pop_all())

    def __enter__(self) -> Model:
        self._turns.require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the runtime, once calls of other threads are answered. Closing twice does nothing."""
        self._turns.close(self._held.close)

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
            UsageError: another dtype, rank, size or number of channels, or nothing at all; or the model is closed. It
                says what to do.
            InferenceError: the runtime failed.
        """
        tiles = tiles_of(images, self.contract)
        rows: list[TileAnswer] = []
        with self._turns.call() as turn:
            for start in range(0, len(tiles), self._session.batch_size):
                some = tiles[start : start + self._session.batch_size]
                pixels = np.empty((len(some), *self.contract.input_size, 3), np.uint8)
                for out, tile in zip(pixels, some, strict=True):
                    resize_into(out, np.ascontiguousarray(tile))
                with turn:
                    answers = self._session.infer(pixels).tolist()
                for tile, answer in zip(some, answers, strict=True):
                    rows.append(self._row(None, tile.shape[0], tile.shape[1], tuple(answer)))
        return Answers(self.contract.class_names, tuple(rows), self.contract.operating_point is not None)

    def predict_files(self, paths: Iterable[Name]) -> Answers:
        """Read, decode and predict files: one answer for each, also for those that cannot be.

        Raises:
            UsageError: there is no path, or something else than a list of paths; or the model is closed.
            InferenceError: the runtime failed.
        """
        names = path_texts(paths)
        source = Folder(Path(os.sep))
        # Joined to the root again by whoever reads; the working folder may change meanwhile.
        tiles = (TileRef(at, os.path.abspath(name).lstrip(os.sep)) for at, name in enumerate(names))  # noqa: PTH100
        rows: list[TileAnswer] = []
        batches = batches_of(tiles, self._session.batch_size)
        with self._turns.call() as turn, turn, closing(self._session.predict(batches, source=source)) as results:
            for result in results:
                rows += map(self._answer, names[len(rows) :], result.outcomes)
        return Answers(self.contract.class_names, tuple(rows), self.contract.operating_point is not None)

    def predict_folder(self, folder: Name, *, out: Name, **options: Unpack[RunOptions]) -> RunRecord:
        """Predict every tile of a source into one durable table, as `cervix-batch` does; goes on with a partial run.

        Args:
            folder: the tiles: a folder, a list, an archive or an address, as `cervix-batch` takes them.
            out: the table: `.csv`, `.csv.gz`, `.jsonl` or `.parquet`.
            options: what `cervix-batch` takes too, such as `overwrite=True` or `slide="{slide}/tiles/*"`; `budget` as
                `--max-failures` and `shard` as `--shard` may be written as there.

        Returns:
            The run's record, which lies beside the table too.

        Raises:
            CervixError: see `errors.py`; then there is no new table, and what was done is kept.
        """
        bundle, info = self._request.bundle, self.info
        config = BatchConfig(
            tiles=path_text(folder, what="the folder"),
            out=Path(path_text(out, what="out")),
            model=bundle.root,
            precision=info.precision,
            backend=info.backend,
            device=self._request.device,
            batch_size=self._session.batch_size,
            expect_digest=bundle.digest,
            **run_options(options),
        )
        lent = replace(self._chosen, backend=Lent(self._chosen.backend))
        with self._turns.call() as turn, turn:
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
