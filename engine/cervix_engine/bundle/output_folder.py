"""Where a new bundle may go, and what of an old one may be replaced."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cervix_engine.bundle.bundle import MANIFEST, listed_files
from cervix_engine.errors import OutputError, OutputExistsError, UsageError
from cervix_engine.outputs import folder
from cervix_engine.outputs.places import NOBODYS, require_outside

# Of an export that was killed: what no manifest lists, and the next export would remove.
_OF_EXPORTS = frozenset({"certificates", "engines", ".export", ".export.lock"})


def check_output(out: Path, *, overwrite: bool, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse an output that is already there, before any work is done.

    With `overwrite` a bundle may be replaced, and nothing else: a mistyped path must not delete a folder that
    this program did not make, nor a file that a person laid into a bundle.

    Args:
        out: the bundle that is to be made.
        overwrite: whether one that lies there may be replaced.
        inputs: files and folders that the command reads; None for those that are not asked for.

    Raises:
        OutputExistsError: something is there that must not be replaced.
        OutputError: the place cannot be written to.
        UsageError: an input lies there, or a link does.
    """
    if out.is_symlink() or os.path.ismount(out):
        raise UsageError(f"{out} is a link or a mount point, and is not replaced: give another --out")
    if out.exists():
        require_outside(out, inputs)
    if out.is_dir() and any(out.iterdir()):
        if not (out / MANIFEST).is_file():
            raise OutputExistsError(f"{out} exists and is no bundle: give another --out")
        if others := _beside_bundle(out):
            raise OutputExistsError(f"{out} holds more than a bundle, {others[0]}: give another --out, or move that")
        if not overwrite:
            raise OutputExistsError(f"{out} exists: give another --out, or --overwrite to replace it")
    elif out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file: give another --out")
    ancestor = next(parent for parent in out.absolute().parents if parent.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise OutputError(f"cannot write to {out}: no permission in {ancestor}, or it is no folder")


def _beside_bundle(root: Path) -> list[str]:
    """What lies in a bundle's folder and is no part of it."""
    listed = listed_files(root)
    files = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_symlink() or not path.is_dir())
    return [file.as_posix() for file in files if file.as_posix() not in listed and not _is_ours(file)]


def _is_ours(file: Path) -> bool:
    """Whether a bundle's unlisted file, by its name, is the manifest, of an export, or nobody's."""
    top, name = file.parts[0], file.name
    if top in _OF_EXPORTS or name in NOBODYS or (name.startswith(".") and name.endswith(".tmp")):
        return True
    return len(file.parts) == 1 and (name == MANIFEST or file.suffix == ".onnx" or file.match("model.int8*.json"))


@contextmanager
def whole_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `out`; it takes `out`'s place if the block succeeds, else it is removed.

    Raises:
        OutputExistsError: as `check_output`, which is asked again before the old folder goes.
        OutputError: the file system refused.
    """
    with folder.whole_folder(out, check=partial(check_output, out, overwrite=overwrite)) as made:
        yield made
