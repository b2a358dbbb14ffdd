"""TensorRT's messages: kept, and never the moment at which another of its objects ends."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

from cervix_engine.backends.cuda.messages import collected_messages

TRT = SimpleNamespace(
    ILogger=type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})
)


def test_the_last_error_and_all_warnings_are_kept() -> None:
    messages = collected_messages(TRT)
    assert (messages.last_error, messages.warnings) == ("it gave no reason", [])
    for severity, message in [(2, "slow"), (1, "first"), (3, "told"), (2, "slower"), (0, "last"), (4, "more")]:
        messages.log(severity, message)
    assert (messages.last_error, messages.warnings) == ("last", ["slow", "slower"])


def test_what_an_exception_kept_has_ended_before_the_first_message() -> None:
    class Builder:
        """Belongs to a cycle, as what the frames of an exception hold does."""

        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        left = weakref.ref(Builder())
        assert left() is not None
        collected_messages(TRT)
        assert left() is None
    finally:
        gc.enable()
