"""A folder that is either whole or not there: made beside its place, then renamed into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cervix_engine.files import fsync_folder, output_errors


@contextmanager
def whole_folder(out: Path, *, check: Callable[[], None]) -> Iterator[Path]:
    """Give a temporary folder beside `out`; it takes `out`'s place if the block succeeds, else it is removed.

    Args:
        out: the folder.
        check: asked once more whether it may be replaced, before the old folder goes.

    Raises:
        OutputError: the file system refused.
    """
    place = out.absolute()
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with output_errors(f"cannot write {out}"):
            partial.mkdir(parents=True)
            yield partial
            check()
            _replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, place: Path) -> None:
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    if place.exists():
        place.rename(old)
    partial.rename(place)
    fsync_folder(place.parent)
    shutil.rmtree(old, ignore_errors=True)
