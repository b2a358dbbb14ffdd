"""How many decode workers a stream has, as given or as the model needs them."""

from __future__ import annotations

import math

# For so long the workers' use is observed before their number is chosen, again and again.
OBSERVED_S = 0.5
# They could do this much more than they have to: some tiles are larger than those that were seen.
HEADROOM = 1.25


def enough_workers(in_use: float, *, most: int) -> int:
    """How many workers to keep where `in_use` of them had something to do, on average."""
    return max(1, min(most, math.ceil(HEADROOM * in_use)))


class WorkerCount:
    """The number of workers: as given, or where it is `chosen`, the least that feeds the model.

    A run starts with as many as may be of use, and so loses no time. Once it is under way, workers that wait for free
    slots show that the model, or whoever takes its answers, is what the run waits for; then only those that were in use
    are kept, and some more. Where all are in use again, as with larger tiles further on, their number grows again.

    Args:
        most: how many there may be.
        chosen: whether fewer of them do, where fewer are enough.
    """

    def __init__(self, most: int, *, chosen: bool = False) -> None:
        self.limit = most
        self._most = most
        self._chosen = chosen
        self._began: float | None = None
        self._seen = 0.0
        self._used_s = 0.0

    def observe(self, busy: int, now: float) -> None:
        """Note that `busy` workers had something to do since the last call; after a while, choose their number."""
        if self._began is None:
            self._began = self._seen = now
        self._used_s += busy * (now - self._seen)
        self._seen = now
        observed_s = now - self._began
        if observed_s >= OBSERVED_S:
            if self._chosen:
                self.limit = enough_workers(self._used_s / observed_s, most=self._most)
            self._began, self._used_s = now, 0.0

    def cap(self, most: int) -> None:
        """There cannot be more than these."""
        self._most = most
        self.limit = min(self.limit, most)
