"""The one start of everything that computes, with tiles and without."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import BackendUnavailableError, InferenceError
from cervix_engine.run.session import Chosen, SessionRequest, open_session
from cervix_engine.run.tuning import BATCH_SIZES, DEFAULT_BATCH_SIZE
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.values import Pixels, Probabilities
from engine.run.support import CONTRACT, choose_fake, reference_probabilities


class Recorder(FakeBackend):
    """Notes the batches that it gets while it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Pixels] = []

    def infer(self, pixels: Pixels) -> Probabilities:
        self.seen.append(pixels.copy())
        return super().infer(pixels)


def pixels_of(count: int) -> Pixels:
    return np.random.default_rng(count).integers(0, 256, (count, *CONTRACT.input_size, 3), np.uint8)


def test_it_needs_no_tiles(bundle: Bundle) -> None:
    began = time.perf_counter()
    with open_session(SessionRequest(bundle, began=began)) as session:
        elapsed = time.perf_counter() - began
        pixels = pixels_of(3)
        np.testing.assert_allclose(session.infer(pixels), reference_probabilities(pixels), atol=1e-5)
        with pytest.raises(ValueError, match="without tiles"):
            _ = session.listing
    assert session.batch_size == DEFAULT_BATCH_SIZE
    assert session.provenance.bundle_digest == bundle.digest
    assert session.provenance.replay_absdiff < 1e-5
    assert 0 < session.provenance.start_s <= elapsed


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_every_batch_has_the_session_s_size(fake_bundle: Bundle, count: int) -> None:
    backend = Recorder()
    with open_session(SessionRequest(fake_bundle, batch_size=4), choose=lambda _: Chosen(backend)) as session:
        backend.seen.clear()
        pixels = pixels_of(count)
        answers = session.infer(pixels)
    assert answers.shape == (count, 5)
    np.testing.assert_array_equal(answers, FakeBackend().infer(np.concatenate([pixels, pixels_of(1)]))[:count])
    padded = np.zeros((-(-count // 4) * 4, *pixels.shape[1:]), np.uint8)
    padded[:count] = pixels
    assert [len(batch) for batch in backend.seen] == [4] * (len(padded) // 4)
    if count:
        np.testing.assert_array_equal(np.concatenate(backend.seen), padded)


def test_automatic_sizes_without_tiles_are_measured_on_golden_ones(fake_bundle: Bundle) -> None:
    request = SessionRequest(fake_bundle, batch_size="auto", workers="auto")
    with open_session(request, choose=choose_fake) as session:
        assert session.batch_size in BATCH_SIZES
        assert session.workers is None, "their number is chosen while they work"


def test_tiles_are_listed_only_where_something_can_run_and_before_it_is_loaded(
    bundle: Bundle, fake_bundle: Bundle, tiles: Path, tmp_path: Path
) -> None:
    order: list[str] = []

    def list_tiles() -> Listing:
        order.append("list")
        return discover(Folder(tiles), spool=tmp_path)

    class Loaded(FakeBackend):
        def __enter__(self) -> Loaded:
            order.append("load")
            return self

    request = SessionRequest(fake_bundle, batch_size=4)
    with open_session(request, list_tiles=list_tiles, choose=lambda _: Chosen(Loaded())) as session:
        assert session.listing.found == 50
    assert order == ["list", "load"]
    refused = SessionRequest(bundle, precision="int8")
    with pytest.raises(BackendUnavailableError), open_session(refused, list_tiles=list_tiles):
        pass
    assert order == ["list", "load"]


def test_a_model_that_is_not_the_bundle_s_is_refused(bundle: Bundle) -> None:
    wrong = SessionRequest(bundle, batch_size=4)
    with (
        pytest.raises(InferenceError, match="differ from Keras's on golden tiles"),
        open_session(wrong, choose=choose_fake),
    ):
        pass
