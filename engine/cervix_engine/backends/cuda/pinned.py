"""Host memory that GPUs copy from by themselves, because it is page-locked: the slots of a stream, while it runs.

Source: CUDA Driver API, `cuMemHostRegister`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cervix_engine.values import Pixels

log = logging.getLogger(__name__)

# By where it begins; for all GPUs, since each of them copies from any.
_PINNED: dict[int, Pixels] = {}


@contextmanager
def page_locked(pixels: Pixels, *, wait: Callable[[], None]) -> Iterator[None]:
    """Keep an array's memory where it is for the block; where that cannot be done, say that it costs a copy.

    A device must be current. `wait` returns once no device copies from the array any more.
    """
    from cuda.bindings import driver

    at, size = pixels.ctypes.data, pixels.nbytes
    (error,) = driver.cuMemHostRegister(at, size, driver.CU_MEMHOSTREGISTER_PORTABLE)
    if error != driver.CUresult.CUDA_SUCCESS:
        log.warning("%d MB cannot be page-locked, so each batch is copied once more: %s", size >> 20, error)
        yield
        return
    _PINNED[at] = pixels
    try:
        yield
    finally:
        wait()
        del _PINNED[at]
        driver.cuMemHostUnregister(at)


def pinned_buffer(pixels: Pixels) -> Any:
    """The buffer that a batch in page-locked memory is, to copy from; None where it does not lie in such memory."""
    if not pixels.flags.c_contiguous:
        return None
    begin, end = pixels.ctypes.data, pixels.ctypes.data + pixels.nbytes
    if any(at <= begin and end <= at + held.nbytes for at, held in _PINNED.items()):
        from cuda.core import Buffer

        return Buffer.from_handle(begin, pixels.nbytes, owner=pixels)
    return None
