"""How many decode workers a stream has: as given, as the model needs them, or as there are cores for them."""

from __future__ import annotations

import math

from cervix_engine.machine import usable_cpus

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

    Of a number that was given, too, no more are kept than keep all cores busy while others wait for a disk or a server:
    those beyond would only take turns, each with a cache that others have filled.

    Args:
        most: how many there may be.
        chosen: whether fewer of them do, where fewer are enough for the model.
        cores: that they can use.
    """

    def __init__(self, most: int, *, chosen: bool = False, cores: int | None = None) -> None:
        self.limit = most
        self._most = most
        self._chosen = chosen
        self._cores = cores or usable_cpus()
        self._began: float | None = None
        self._seen = 0.0
        self._used_s = 0.0
        self._cpu_s = 0.0
        self._idle_s = 0.0

    def worked(self, *, cpu_s: float, idle_s: float) -> None:
        """Note how long a worker was on a core for a chunk, and how long it waited for anything else than a core."""
        self._cpu_s += cpu_s
        self._idle_s += idle_s

    def observe(self, busy: int, now: float) -> None:
        """Note that `busy` workers had something to do since the last call; after a while, choose their number."""
        if self._began is None:
            self._began = self._seen = now
        self._used_s += busy * (now - self._seen)
        self._seen = now
        observed_s = now - self._began
        if observed_s >= OBSERVED_S:
            needed = self._used_s / observed_s if self._chosen else self._for_all_cores()
            self.limit = enough_workers(needed, most=self._most)
            self._began, self._used_s, self._cpu_s, self._idle_s = now, 0.0, 0.0, 0.0

    def _for_all_cores(self) -> float:
        return self._cores * (1 + self._idle_s / self._cpu_s) if self._cpu_s else self._most

    def cap(self, most: int) -> None:
        """There cannot be more than these."""
        self._most = most
        self.limit = min(self.limit, most)
