"""A folder that is either whole or not there: made beside its place, then renamed into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cervix_engine.bundle.bundle import MANIFEST
from cervix_engine.errors import OutputError, OutputExistsError
from cervix_engine.files import fsync_folder, output_errors


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse an output that is already there, before any work is done.

    With `overwrite` a bundle may be replaced, and nothing else: a mistyped path must not delete a folder that
    this program did not make.

    Raises:
        OutputExistsError: something is there that must not be replaced.
        OutputError: the place cannot be written to.
    """
    if out.is_dir() and any(out.iterdir()):
        if not (out / MANIFEST).is_file():
            raise OutputExistsError(f"{out} exists and is no bundle: give another --out")
        if not overwrite:
            raise OutputExistsError(f"{out} exists: give another --out, or --overwrite to replace it")
    elif out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file: give another --out")
    ancestor = next(parent for parent in out.absolute().parents if parent.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise OutputError(f"cannot write to {out}: no permission in {ancestor}, or it is no folder")


@contextmanager
def whole_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `out`; it takes `out`'s place if the block succeeds, else it is removed.

    Raises:
        OutputExistsError: as `check_output`, which is asked again before the old folder goes.
        OutputError: the file system refused.
    """
    place = out.absolute()
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with output_errors(f"cannot write {out}"):
            partial.mkdir(parents=True)
            yield partial
            check_output(out, overwrite=overwrite)
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
