"""What bound a run is said from what its stages did with their time, processes and the interpreter's lock included."""

from __future__ import annotations

import time

import pytest

from cervix_engine.cli.batch_messages import bound_sentence
from cervix_engine.run.stream.stats import PARENT, StageStats, StreamStats

DECODE = StageStats("decode", 16, 15.84, 0.16, 20_493)
INFER = StageStats("infer", 1, 0.915, 0.085, 20_496)
WRITE = StageStats("write", 1, 0.2, 0.8, 20_500)
PYTHON = StageStats(PARENT, 1, 0.5, 0.5, 20_500)


def test_a_stage_s_rate_is_that_of_all_its_workers_never_kept_waiting() -> None:
    assert DECODE.tiles_per_sec == pytest.approx(20_700)
    assert INFER.tiles_per_sec == pytest.approx(22_400)
    assert StageStats("list", 1, 0.0, 0.0, 0).tiles_per_sec == 0.0


def test_the_share_is_of_a_stage_s_own_time() -> None:
    """However many workers it has, and however long each of them was there."""
    assert DECODE.busy_share == pytest.approx(0.99)
    assert WRITE.busy_share == pytest.approx(0.2)
    assert StageStats("list", 1, 0.0, 0.0, 0).busy_share == 0.0


@pytest.mark.parametrize(
    ("bound", "sentence"),
    [
        (DECODE, "bound by decode: 16 workers sustain 20,700 tiles/s, the model could do 22,400"),
        (INFER, "bound by the model: it sustains 22,400 tiles/s, 16 workers could decode 20,700"),
        (
            WRITE,
            "bound by writing: it sustains 102,500 tiles/s, the model could do 22,400, 16 workers could decode 20,700",
        ),
        (
            PYTHON,
            "bound by the Python of the run's own process: it sustains 41,000 tiles/s, the model could do 22,400, "
            "16 workers could decode 20,700",
        ),
    ],
)
def test_the_sentence_says_what_the_others_could_do(bound: StageStats, sentence: str) -> None:
    assert bound_sentence(bound, (DECODE, INFER, WRITE, PYTHON)) == sentence


def test_one_worker_sustains() -> None:
    decode = StageStats("decode", 1, 4.0, 0.0, 100)
    assert bound_sentence(decode, (decode, INFER)).startswith("bound by decode: 1 worker sustains 25.0 tiles/s, ")


def test_what_threads_do_in_python_is_one_stage_of_all_of_them() -> None:
    stats = StreamStats()
    stats.clock("list").tiles = 7
    with stats.running():
        with stats.in_python():
            _compute(0.05)
        time.sleep(0.1)
    parent = stats.stages()[-1]
    assert (parent.stage, parent.threads, parent.tiles) == (PARENT, 1, 7)
    assert stats.stages()[0].busy_share == 0.0, "a stage that has done its part waits for the others"
    # The block's time counts twice here: once as this thread's, and once as another one's would.
    assert 0.1 <= parent.busy_s < 0.2
    assert parent.busy_s + parent.waiting_s >= 0.15


def _compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
