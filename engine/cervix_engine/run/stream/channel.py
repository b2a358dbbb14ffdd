"""How threads hand things on, and how all of them stop when one fails."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - a request to leave quietly, not a fault
    """Raised in a thread that waits when the stream has been stopped; the reason is held by `Stop`."""


class Stop:
    """One stop for all threads of a stream. The first reason wins; later ones are its consequences."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: BaseException | None = None
        self._wakers: list[Callable[[], None]] = []

    def set(self, reason: BaseException) -> None:
        """Stop every thread, for `reason`, unless that was done before."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            wakers = tuple(self._wakers)
        # Outside the lock: a waker takes its channel's lock, and a waiter of that channel reads `is_set`.
        for wake in wakers:
            wake()

    @property
    def is_set(self) -> bool:
        return self._reason is not None

    @property
    def reason(self) -> BaseException | None:
        return self._reason

    def wakes(self, waker: Callable[[], None]) -> None:
        """Call `waker` when the stop is set. To be called before any thread starts."""
        self._wakers.append(waker)


class Channel(Generic[T]):
    """A bounded first-in first-out queue whose waiters leave with `Stopped` when the stream stops.

    Args:
        stop: the stream's stop.
        capacity: how many items may wait; more makes `put` wait, which is the back-pressure.
        keeps: whether items that wait when the stream stops are still taken, before `Stopped` is raised.
    """

    def __init__(self, stop: Stop, capacity: int, *, keeps: bool = False) -> None:
        self._stop = stop
        self._capacity = capacity
        self._keeps = keeps
        self._items: deque[T] = deque()
        self._closed = False
        self._changed = threading.Condition()
        stop.wakes(self._wake)

    def put(self, item: T) -> None:
        """Append an item, waiting for room.

        Raises:
            Stopped: the stream was stopped.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._capacity or self._stop.is_set)
            if self._stop.is_set:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """No more items will come; who waits for one leaves its loop when the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def get(self) -> T:
        """Take the oldest item, waiting for one.

        Raises:
            Stopped: the stream was stopped.
            EOFError: the channel is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed or self._stop.is_set)
            if self._stop.is_set and not (self._items and self._keeps):
                raise Stopped
            if not self._items:
                raise EOFError
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                item = self.get()
            except EOFError:
                return
            yield item

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
