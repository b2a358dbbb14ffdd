"""How many tiles a batch may have, and how many processes may decode: for the command line and for Python."""

from __future__ import annotations

from cervix_engine.errors import UsageError

BATCH_SIZES = range(1, 4097)
WORKERS = range(1, 257)


def require_sizes(*, batch_size: object, workers: object) -> None:
    """Refuse what is no size, before anything is opened; `auto` is one, and so is None for a batch.

    Raises:
        UsageError: a number is out of range, or something else than a whole number.
    """
    if batch_size is not None:
        _require("batch_size", batch_size, BATCH_SIZES)
    _require("workers", workers, WORKERS)


def _require(name: str, value: object, allowed: range) -> None:
    # A boolean is an int to Python.
    if value != "auto" and (type(value) is not int or value not in allowed):
        raise UsageError(f"{name}={value!r}: expected a whole number from {allowed[0]} to {allowed[-1]}, or 'auto'")
