"""Who may use a loaded model when: calls of several threads by turns, and none once it is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cervix_engine.errors import UsageError


class Turns:
    """Calls take turns, maybe several times each; `close` waits for those under way, and refuses all later ones."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._callers: list[int] = []
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        return not self._is_closed

    def require_open(self) -> None:
        """Raises UsageError where it is closed."""
        if not self.is_open:
            raise UsageError("this model is closed: open it again")

    @contextmanager
    def call(self) -> Iterator[threading.Lock]:
        """One call, from its start to its end; gives the lock to hold while the runtime computes for it.

        Raises:
            UsageError: the model is closed.
        """
        me = threading.get_ident()
        with self._changed:
            self.require_open()
            self._callers.append(me)
        try:
            yield self._turn
        finally:
            with self._changed:
                self._callers.remove(me)
                self._changed.notify_all()

    def close(self, free: Callable[[], object]) -> None:
        """Take no more calls, wait for those of other threads, then `free`; a second time does nothing more.

        Raises:
            UsageError: this very thread is within a call, as in a signal's handler: it would wait for itself.
        """
        with self._changed:
            if threading.get_ident() in self._callers:
                raise UsageError("this thread is predicting with this model: close it afterwards")
            self._is_closed = True
            self._changed.wait_for(lambda: not self._callers)
        with self._turn:
            free()
