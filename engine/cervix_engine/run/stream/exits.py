"""What the end of a decode worker says of the tile that it had."""

from __future__ import annotations

import os
import signal

from cervix_engine.run.stream.decode import DecodeLimits
from cervix_engine.run.stream.worker import OUT_OF_MEMORY
from cervix_engine.tiles.tile import TileFailure

# Sent by somebody: by the kernel to whom it takes for too large, by a scheduler, an operator, a closed terminal.
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


def failure_of_exit(status: int | None, limits: DecodeLimits) -> TileFailure | None:
    """Why the decoder failed at its tile; None where the worker was killed from outside, or nobody knows how it ended.

    Args:
        status: as `os.waitpid` gives it.
        limits: under which it decoded.
    """
    if status is None:
        return None
    code = os.waitstatus_to_exitcode(status)
    if -code in _FROM_OUTSIDE:
        return None
    if -code == signal.SIGALRM:
        return TileFailure("decode", f"decoder_hung: not decoded within {limits.tile_seconds:g} s")
    if code == OUT_OF_MEMORY:
        return TileFailure("decode", f"decoder_crashed: out of memory, the limit is {limits.worker_bytes // 2**20} MB")
    return TileFailure("decode", f"decoder_crashed: {exit_words(status)}")


def exit_words(status: int | None) -> str:
    """In words, such as `its process ended with SIGSEGV`."""
    if status is None:
        return "its process is gone"
    code = os.waitstatus_to_exitcode(status)
    if code == OUT_OF_MEMORY:
        return "its process ran out of memory"
    named = {-item: item.name for item in signal.Signals}
    return f"its process ended with {named.get(code, f'exit code {code}' if code >= 0 else f'signal {-code}')}"
