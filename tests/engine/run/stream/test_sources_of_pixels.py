"""A source may give pixels instead of encoded bytes: they are resized, hashed and judged like those of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.run.stream.decode import DecodeJob
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import StreamSettings, batches_of, stream
from cervix_engine.tiles.preprocess import resize_into
from cervix_engine.tiles.quality import quality_flags
from cervix_engine.tiles.tile import Prediction, TileFailure, TileRef, TileSize, TileStamp
from cervix_engine.values import Pixels, Probabilities
from engine.run.stream.drawn_source import BLANK, SIDE, Drawn, DrawnReader, drawn
from engine.run.support import CONTRACT


class Recorder(FakeBackend):
    """Keeps a copy of every batch: slots are used again."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Pixels] = []

    def infer(self, pixels: Pixels) -> Probabilities:
        self.batches.append(pixels.copy())
        return super().infer(pixels)


def test_pixels_of_a_source_reach_the_model_resized_and_its_failures_their_rows() -> None:
    recorder, tiles = Recorder(), [TileRef(number, str(number), TileStamp(1, 2, "where")) for number in range(6)]
    settings = StreamSettings(Drawn(Path()), CONTRACT, 3, 2, hash_tiles=True)
    results = list(stream(batches_of(tiles, 3), backend=recorder, settings=settings, stats=StreamStats()))
    outcomes = [outcome for result in results for outcome in result.outcomes]
    notes = [note for result in results for note in result.notes]
    received = np.concatenate(recorder.batches)
    for number, (outcome, note) in enumerate(zip(outcomes, notes, strict=True)):
        if number == 3:
            assert outcome == TileFailure("read", "unreadable: no such region")
            continue
        assert isinstance(outcome, Prediction)
        assert outcome.size == TileSize(SIDE, SIDE + number)
        expected = np.empty((*CONTRACT.input_size, 3), np.uint8)
        resize_into(expected, drawn(number))
        np.testing.assert_array_equal(received[number], expected)
        assert note.sha256 == hashlib.sha256(drawn(number).tobytes()).hexdigest()


def test_pixels_are_judged_as_those_of_files_are() -> None:
    job = DecodeJob(DrawnReader(), CONTRACT, (1, 1, *CONTRACT.input_size, 3), TileSteps(), judge_quality=True)
    _, notes = job.decode((str(BLANK), None), np.empty((*CONTRACT.input_size, 3), np.uint8))
    assert notes.quality == quality_flags(drawn(BLANK), CONTRACT.tile_statistics) != ()
