from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from cervix_train.progress import Lines, _bar, meter

Meter = Callable[..., AbstractContextManager[Callable[[int], None]]]


def test_lines_tell_rate_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    times: Iterator[float] = iter([0.0, 5.0, 20.0, 20.0, 20.0, 50.0, 50.0])
    with caplog.at_level(logging.INFO, "cervix_train"):
        lines = Lines("features", total=100, clock=lambda: next(times))
        lines.advance(10)
        lines.advance(10)
        lines.finish()
    assert caplog.messages == [
        "features: 20/100 tiles, 1.0 tiles/s, 80 s left",
        "features: 20 tiles in 50.0 s (0.4 tiles/s)",
    ]


@pytest.mark.parametrize("show", [meter, _bar])
def test_a_meter_takes_any_steps(show: Meter) -> None:
    with show("features", total=3) as advance:
        advance(0)
        advance(2)
        advance(1)
