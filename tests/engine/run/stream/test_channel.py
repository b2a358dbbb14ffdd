"""Threads hand things on in order, wait for one another, and all leave when one of them stops the stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from cervix_engine.run.stream.channel import Channel, Stop, Stopped
from cervix_engine.run.stream.slot import Slot, TileBatch
from cervix_engine.tiles.tile import NO_NOTES, TileFailure, TileNotes
from engine.run.support import PATIENCE_S, refs

pytestmark = pytest.mark.timeout(300)


class Waiter:
    """Runs `work` in a thread and keeps what came of it."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            self.result = work()
        except BaseException as error:  # noqa: BLE001 - kept for the test to look at
            self.error = error

    def is_waiting(self) -> bool:
        self._thread.join(0.05)
        return self._thread.is_alive()

    def end(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the thread still waits"


def test_first_in_first_out_to_the_end() -> None:
    channel: Channel[int] = Channel(Stop(), 5)
    for number in range(5):
        channel.put(number)
    channel.close()
    assert list(channel) == [0, 1, 2, 3, 4]
    with pytest.raises(EOFError):
        channel.get()


def test_put_waits_for_room() -> None:
    channel: Channel[int] = Channel(Stop(), 1)
    channel.put(1)
    waiter = Waiter(lambda: channel.put(2))
    assert waiter.is_waiting()
    assert channel.get() == 1
    waiter.end()
    assert channel.get() == 2


def test_get_waits_for_an_item() -> None:
    channel: Channel[int] = Channel(Stop(), 1)
    waiter = Waiter(channel.get)
    assert waiter.is_waiting()
    channel.put(7)
    waiter.end()
    assert waiter.result == 7


def test_closing_lets_waiters_go() -> None:
    channel: Channel[int] = Channel(Stop(), 1)
    waiters = [Waiter(channel.get) for _ in range(3)]
    assert all(waiter.is_waiting() for waiter in waiters)
    channel.close()
    for waiter in waiters:
        waiter.end()
        assert isinstance(waiter.error, EOFError)


def test_the_stop_wakes_everyone_who_waits_anywhere() -> None:
    stop = Stop()
    empty: Channel[int] = Channel(stop, 1)
    full: Channel[int] = Channel(stop, 1)
    slot = Slot(stop, 0, np.zeros((2, 4, 4, 3), np.uint8))
    full.put(0)
    slot.assign(TileBatch(0, refs(["a", "b"])))
    waiters = [Waiter(empty.get), Waiter(empty.get), Waiter(lambda: full.put(1)), Waiter(slot.wait_filled)]
    assert all(waiter.is_waiting() for waiter in waiters)
    stop.set(ValueError("the reason"))
    for waiter in waiters:
        waiter.end()
        assert isinstance(waiter.error, Stopped)


def test_after_the_stop_nobody_gets_or_puts_anything() -> None:
    stop = Stop()
    channel: Channel[int] = Channel(stop, 3)
    channel.put(1)
    stop.set(ValueError())
    with pytest.raises(Stopped):
        channel.get()
    with pytest.raises(Stopped):
        channel.put(2)


def test_what_waits_is_still_taken_from_a_channel_that_keeps_it() -> None:
    stop = Stop()
    channel: Channel[int] = Channel(stop, 3, keeps=True)
    channel.put(1)
    channel.put(2)
    stop.set(ValueError())
    with pytest.raises(Stopped):
        channel.put(3)
    assert [channel.get(), channel.get()] == [1, 2]
    with pytest.raises(Stopped):
        channel.get()


def test_the_first_reason_wins() -> None:
    stop = Stop()
    assert not stop.is_set
    assert stop.reason is None
    first = ValueError("first")
    stop.set(first)
    stop.set(RuntimeError("a consequence"))
    assert stop.is_set
    assert stop.reason is first


def test_of_many_reasons_at_once_exactly_one_wins_and_wakers_run_once() -> None:
    stop = Stop()
    woken: list[object] = []
    stop.wakes(lambda: woken.append(stop.reason))
    barrier = threading.Barrier(8)

    def set_together(reason: BaseException) -> None:
        barrier.wait(PATIENCE_S)
        stop.set(reason)

    reasons = [ValueError(str(index)) for index in range(8)]
    waiters = [Waiter(partial(set_together, reason)) for reason in reasons]
    for waiter in waiters:
        waiter.end()
        assert waiter.error is None
    assert stop.reason in reasons
    assert woken == [stop.reason]


def test_every_item_arrives_once_among_many_threads() -> None:
    channel: Channel[int] = Channel(Stop(), 3)

    def give(start: int) -> None:
        for number in range(start, start + 200):
            channel.put(number)

    taken = [Waiter(lambda: list(channel)) for _ in range(4)]
    given = [Waiter(partial(give, start)) for start in (0, 1000, 2000)]
    for waiter in given:
        waiter.end()
    channel.close()
    parts: list[list[int]] = []
    for waiter in taken:
        waiter.end()
        assert isinstance(waiter.result, list)
        parts.append(waiter.result)
    assert sorted(item for part in parts for item in part) == [
        start + i for start in (0, 1000, 2000) for i in range(200)
    ]
    for part in parts:  # and each consumer sees each producer's items in their order
        for start in (0, 1000, 2000):
            mine = [item for item in part if start <= item < start + 1000]
            assert mine == sorted(mine)


def test_a_slot_is_filled_when_the_last_position_is_done() -> None:
    slot = Slot(Stop(), 0, np.zeros((4, 2, 2, 3), np.uint8))
    slot.pixels[...] = 9
    slot.assign(TileBatch(5, refs(["a", "b", "c"])))
    assert slot.batch.index == 5
    assert slot.decoded == [None] * 3
    assert (slot.pixels[:3] == 9).all()
    assert (slot.pixels[3:] == 0).all()
    waiter = Waiter(slot.wait_filled)
    slot.fill(1, [(5, 6), (7, 8)], {1: TileNotes("cd")})
    assert waiter.is_waiting()
    slot.fill(0, [TileFailure("read", "gone")], {0: TileNotes("ab")})
    waiter.end()
    assert waiter.error is None
    assert slot.decoded == [TileFailure("read", "gone"), (5, 6), (7, 8)]
    assert slot.notes == [TileNotes("ab"), NO_NOTES, TileNotes("cd")]


def test_a_slot_is_not_filled_by_its_earlier_batch() -> None:
    slot = Slot(Stop(), 0, np.zeros((1, 2, 2, 3), np.uint8))
    for index in range(3):
        slot.assign(TileBatch(index, refs(["a"])))
        waiter = Waiter(slot.wait_filled)
        assert waiter.is_waiting()
        slot.fill(0, [(2, 2)], {})
        waiter.end()
