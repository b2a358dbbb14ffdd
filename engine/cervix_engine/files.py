"""Files that are either whole or not there: digests, and writes that survive a power cut."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cervix_engine.errors import CervixError, OutputError, UsageError

if TYPE_CHECKING:
    from cervix_engine.values import Pixels

log = logging.getLogger(__name__)

_BLOCK_BYTES = 2**20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_USER = re.compile(r"(?<=://)[^/\s]*(?=@)")
_QUERY = re.compile(r"(://[^?#\s]*[?#])[^\s'\"]+")

# What file systems say of a call that they do not know.
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


@contextmanager
def output_errors(what: str) -> Iterator[None]:
    """Translate the file system's refusals to OutputError; `what` says what could not be done."""
    try:
        yield
    except CervixError:  # some are OSErrors too, and say better what is wrong
        raise
    except OSError as error:
        raise OutputError(f"{what}: {error.strerror or error}") from error


def local_path(name: str | os.PathLike[str]) -> Path:
    """A file or folder of this machine, as it was named.

    Raises:
        UsageError: it is a URL, which a path would spell with one slash less, and which is not opened.
    """
    text = os.fspath(name)
    if _URL.match(text):
        raise UsageError(
            f"{without_keys(text)} is a URL, expected a file or folder of this machine: copy it here first"
        )
    return Path(text)


def without_keys(text: str) -> str:
    """A text without what an address in it may hold of credentials: user and password, and its query."""
    return _QUERY.sub(r"\1…", _USER.sub("…", text))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    # Not hashlib.file_digest: it came with Python 3.11, and the engine runs on 3.10.
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_bytes(data: bytes | memoryview | Pixels) -> str:
    """Hex SHA-256 of bytes in memory, or of pixels row by row."""
    return hashlib.sha256(data if isinstance(data, bytes | memoryview) else data.tobytes()).hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable: fsync of a file alone does not keep its name.

    Old CIFS and some FUSE file systems cannot: one warning says so, since a name is lost only in a power cut.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn_of_names(error.strerror)


@lru_cache(maxsize=1)  # once a process
def _warn_of_names(reason: str) -> None:
    log.warning("this file system keeps no new names in a power cut (fsync of a folder: %s)", reason)


def fsync_file(path: Path) -> None:
    """Make a written file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give an empty folder for temporary files; it is removed at the end.

    Raises:
        OutputError: there is none that can be written.
    """
    with scratch_errors():
        folder = tempfile.TemporaryDirectory(prefix="cervix-")
    with folder as name:
        yield Path(name)


@contextmanager
def scratch_errors() -> Iterator[None]:
    """Translate that there is no folder for temporary files."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"no folder for temporary files can be written: name one in TMPDIR ({error})") from error


def cache_beside(made: Path) -> Path:
    """The folder of what can be computed again, beside what is made: a job may have no home folder, or a small one."""
    return made.absolute().parent / ".cervix-cache"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; rename it there, durably, if the block succeeds.

    Raises:
        OutputError: no regular file lies there, such as a device or a pipe, which the rename would replace.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: what lies there is no regular file")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        fsync_file(temporary)
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` as JSON, atomically and durably.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
