"""Where details go: nowhere, unless a file is named. Names of tiles can identify patients, so no other log has them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cervix_engine.errors import OutputError


@contextmanager
def debug_log(path: Path | None) -> Iterator[None]:
    """Append everything that the engine logs to `path`; None logs nowhere.

    Raises:
        OutputError: the file cannot be written.
    """
    package = logging.getLogger("cervix_engine")
    if path is None:
        yield
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise OutputError(f"cannot write the log {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = package.level
    package.setLevel(logging.DEBUG)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()
