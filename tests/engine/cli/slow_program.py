"""`cervix-batch` with a model that takes its time, for signals: `python -m engine.cli.slow_program WHERE ARGUMENTS…`.

WHERE is `load` or `batch`, for a minute's computing in C that no signal interrupts, or `none`, for a model that takes a
fraction of a second a batch. What it is about to do is a line on standard output: `started`, `loading`, `computing`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from types import TracebackType

from cervix_engine.backends.base import BackendInfo, Synchronous
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.cli.batch import main as cervix_batch
from cervix_engine.run.session import Chosen, SessionRequest
from cervix_engine.run.shards import ShardSize
from cervix_engine.values import Pixels, Probabilities
from engine.run.support import run_setup

BATCH_S = 0.05
SHARD_TILES = 8


def say(what: str) -> None:
    os.write(1, f"{what}\n".encode())


def compute() -> None:
    # Like a runtime's kernels: without Python's lock, and deaf to signals.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)


class SlowBackend(Synchronous):
    """The fake backend, after a minute at `where`."""

    def __init__(self, where: str) -> None:
        self._inner = FakeBackend(seconds_per_batch=BATCH_S)
        self._where = where

    @property
    def info(self) -> BackendInfo:
        return self._inner.info

    def infer(self, pixels: Pixels) -> Probabilities:
        if threading.current_thread() is threading.main_thread():  # golden tiles, at the start
            return self._inner.infer(pixels)
        say("computing")
        if self._where == "batch":
            compute()
        return self._inner.infer(pixels)

    def __enter__(self) -> SlowBackend:
        say("loading")
        if self._where == "load":
            compute()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def choose_slow(_: SessionRequest) -> Chosen:
    say("started")
    return Chosen(SlowBackend(sys.argv[1]))


if __name__ == "__main__":
    cervix_batch(sys.argv[2:], obj=run_setup(choose=choose_slow, shard=ShardSize(SHARD_TILES)))
