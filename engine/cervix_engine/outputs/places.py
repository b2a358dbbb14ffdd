"""What a command may write over: the one place that decides it, before any work.

1. An output has a name, in a folder that is there and can be written.
2. It takes the place of nothing that the command reads: no file by any of its names, nothing in a folder that is read.
3. What lies there is replaced where that was asked for, and only a regular file, or a folder of such files of the kind
   that an earlier command wrote. A device, a socket, or a folder with anything else in it, stays.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from cervix_engine.errors import OutputError, OutputExistsError, UsageError
from cervix_engine.files import output_errors

# What a file manager leaves wherever a person looks.
NOBODYS = frozenset({".DS_Store"})


def require_free(out: Path, *, overwrite: bool = False, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse a file that cannot be written, or must not be replaced.

    Args:
        out: the file that is to be made.
        overwrite: whether a file that lies there may be replaced.
        inputs: files and folders that the command reads; None for those that are not asked for.

    Raises:
        UsageError: it names no file; a folder or no regular file lies there; an input lies or would lie there.
        OutputExistsError: a file lies there that may not be replaced.
        OutputError: its folder is missing or cannot be written.
    """
    _require_place(out, inputs)
    mode = _mode(out)
    if stat.S_ISDIR(mode):
        raise UsageError(f"{out} is a folder, expected a file")
    require_regular(out)
    if os.path.lexists(out) and not overwrite:
        raise OutputExistsError(f"{out} is there already: pass --overwrite to replace it")


def require_regular(out: Path) -> None:
    """Raises UsageError where a device, a pipe or a socket lies in the place of a file, also behind a link."""
    mode = _mode(out)
    if mode and not stat.S_ISREG(mode):
        raise UsageError(f"{out} is no regular file, and is not replaced: name another")


def require_own(out: Path, start: bytes, *, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse a file of a command that replaces what it wrote before without being asked, as `require_free` does.

    Args:
        out: the file that is to be made.
        start: the bytes with which everything begins that the command writes there.
        inputs: as in `require_free`.

    Raises:
        OutputExistsError: a file lies there that begins otherwise, and is not empty.
        UsageError, OutputError: as `require_free`.
    """
    require_free(out, overwrite=True, inputs=inputs)
    if not out.is_file():
        return
    with output_errors(f"cannot look at {out}"), out.open("rb") as file:
        found = file.read(len(start))
    if found and found != start:
        raise OutputExistsError(f"{out} is there already, and not of this command: name another")


def json_start(schema: str) -> bytes:
    """How a JSON file that `files.write_json` wrote of this schema begins, in any version."""
    return f'{{\n  "schema": "{schema.rpartition("/")[0]}/'.encode()


def require_free_folder(out: Path, suffix: str, *, overwrite: bool = False, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse a folder of files of one suffix that cannot be made, or must not be replaced; as `require_free`.

    Raises:
        UsageError: also where a link or a mount point lies there, or a folder that holds anything else.
    """
    inputs = list(inputs)
    _require_place(out, inputs)
    require_outside(out, inputs)
    if not os.path.lexists(out):
        return
    if out.is_symlink() or os.path.ismount(out):
        raise UsageError(f"{out} is a link or a mount point, and is not replaced: name the folder itself, or another")
    if not out.is_dir():
        raise UsageError(f"{out} is no folder")
    with output_errors(f"cannot look at {out}"):
        others = sorted(path.name for path in out.iterdir() if not _is_of_kind(path, suffix))
    if others:
        raise UsageError(f"{out} holds more than {suffix} files, {others[0]}: name another folder")
    if not overwrite:
        raise OutputExistsError(f"{out} is there already: pass --overwrite to replace it")


def require_apart(out: Path, inputs: Iterable[Path | None]) -> None:
    """Raises UsageError where an output would take the place of something that is read, or lie in it."""
    places = {_real(out), _real(out.parent) / out.name}
    for given in _named(inputs):
        own = _real(given)
        if own in places:
            raise UsageError(f"{out} is read, too: write to another file or folder than {given}")
        if any(own in place.parents for place in places):
            raise UsageError(f"{out} would lie in {given}, which is read: name another place")


def local_file(named: str | os.PathLike[str] | None) -> Path | None:
    """What an option names, where that is a file or a folder of this machine, and no pattern, address or `-`."""
    if named is None or not os.path.exists(named):  # noqa: PTH110 - Path.exists raises on a name that is too long
        return None
    return Path(named)


def require_outside(out: Path, inputs: Iterable[Path | None]) -> None:
    """Raises UsageError where something that is read is the folder `out`, or lies in it."""
    for given in _named(inputs):
        if _real(out) in (_real(given), *_real(given).parents):
            raise UsageError(f"{out} holds {given}, which is read: name another folder")


def _require_place(out: Path, inputs: Iterable[Path | None]) -> None:
    if out.name in ("", ".."):
        raise UsageError(f"{str(out)!r} names no place of its own: add a name")
    require_apart(out, inputs)
    if not os.path.isdir(out.parent):  # noqa: PTH112 - Path.is_dir raises on a name that is too long
        raise OutputError(f"cannot write {out}: no such folder")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {out}: no permission")


def _is_of_kind(path: Path, suffix: str) -> bool:
    return path.name in NOBODYS or (path.suffix == suffix and stat.S_ISREG(path.lstat().st_mode))


def _named(inputs: Iterable[Path | None]) -> Iterator[Path]:
    return (given for given in inputs if given is not None)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _mode(path: Path) -> int:
    """What lies at `path`, behind links; 0 where there is nothing or cannot be, as for a name that is too long."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0
