"""Pixels that several processes see: slots lie in memory that belongs to no file system and ends with its holders."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np

from cervix_engine.errors import DecodeWorkerError
from cervix_engine.values import Pixels


class SharedPixels:
    """A zeroed `uint8` array of `shape`, and the descriptor by which another process maps the same memory.

    Made by `memfd_create`: a container's small `/dev/shm`, or a missing one, does not matter, and the kernel frees the
    memory once no process has it any more, however they ended.

    Raises:
        DecodeWorkerError: the machine does not give it.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        try:
            self.descriptor = os.memfd_create("cervix-slots", os.MFD_CLOEXEC)
            with _file_sizes_unlimited():
                os.ftruncate(self.descriptor, prod(shape))
            self.pixels = map_pixels(self.descriptor, shape)
        except OSError as error:
            raise DecodeWorkerError(f"no memory for {shape[0]} batches of pixels: {error.strerror}") from error

    def close(self) -> None:
        """Give the descriptor back; the array stays as long as somebody has it."""
        os.close(self.descriptor)


@contextmanager
def _file_sizes_unlimited() -> Iterator[None]:
    """Lift the limit that a user has set on files (`ulimit -f`): to the kernel this memory is one, on no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def map_pixels(descriptor: int, shape: tuple[int, ...]) -> Pixels:
    """The array behind a descriptor of `SharedPixels`; the descriptor itself may be closed afterwards."""
    return np.frombuffer(mmap.mmap(descriptor, prod(shape)), np.uint8).reshape(shape)
