"""Who begins and fetches batches, in any order that is allowed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from cervix_engine.backends import Backend
from cervix_engine.backends.base import Pending
from cervix_engine.values import Pixels
from engine.backends.simulated_gpu import ON_GPU, pixels_of
from engine.run.support import CONTRACT, reference_probabilities

RUNTIMES = sorted(ON_GPU)
Begin = tuple[int, bool]  # so many tiles; whether they lie in page-locked memory


def assert_right(answers: Any, expected: Any) -> None:
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, expected, atol=1e-5)


@contextmanager
def slot_of(backend: Backend, tiles: int = 8) -> Iterator[Pixels]:
    """Page-locked memory for a batch, as a stream's slots have it."""
    pixels = np.zeros((tiles, *CONTRACT.input_size, 3), np.uint8)
    with backend.pinned(pixels):
        yield pixels


class Caller:
    """Begins and fetches batches as the protocol allows, in memory that it uses again as soon as it may."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._begun: deque[tuple[Pending, Any, Begin, Pixels]] = deque()
        self._free: dict[Begin, list[Pixels]] = {}
        self._answered: list[tuple[Any, Any]] = []
        self._slots = ExitStack()
        self._seed = 0

    def begin(self, kind: Begin) -> None:
        self._seed += 1
        free = self._free.get(kind) or [self._array(*kind)]
        pixels = free.pop()
        pixels[...] = pixels_of(kind[0], self._seed)
        expected = reference_probabilities(pixels)
        self._begun.append((self._backend.begin(pixels, batch=self._seed), expected, kind, pixels))

    def fetch(self) -> None:
        if self._begun:
            pending, expected, kind, pixels = self._begun.popleft()
            answers = pending()
            assert_right(answers, expected)
            pixels[...] = 0xEE
            self._free.setdefault(kind, []).append(pixels)
            self._answered.append((answers, expected))

    def end(self) -> None:
        while self._begun:
            self.fetch()
        self._slots.close()
        for answers, expected in self._answered:  # which belong to the caller
            assert_right(answers, expected)

    def _array(self, tiles: int, pinned: bool) -> Pixels:
        if pinned:
            return self._slots.enter_context(slot_of(self._backend, tiles))
        return np.zeros((tiles, *CONTRACT.input_size, 3), np.uint8)


def drive(backend: Backend, steps: Sequence[Begin | str]) -> None:
    caller = Caller(backend)
    for step in steps:
        if isinstance(step, tuple):
            caller.begin(step)
        else:
            caller.fetch()
    caller.end()
