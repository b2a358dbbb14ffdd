"""Puts finished files into a bundle so that it can be opened after a crash at any point.

The order makes that so. First a manifest without any earlier export's files, then those files are removed and the
new ones moved in, then the full manifest. Files that no manifest lists are ignored, so at every moment the manifest
on disk lists only files that are there, whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from cervix_engine import __version__
from cervix_engine.bundle.bundle import MANIFEST, SCHEMA, Bundle
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.errors import ExportError
from cervix_engine.files import fsync_file, fsync_folder, sha256_file, write_json

# Hidden, so that no manifest ever lists them.
_LOCK, _STAGING = ".export.lock", ".export"

INT8_RECORD = "model.int8.json"
_EXPORTED_FOLDERS = ("certificates", "engines")


@contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """Give an empty folder on the bundle's own disk, for one export at a time; it is removed at the end.

    Raises:
        ExportError: another export works on this bundle.
    """
    staging = root / _STAGING
    try:
        with FileLock(root / _LOCK, timeout=0):
            shutil.rmtree(staging, ignore_errors=True)  # a killed export's
            staging.mkdir()
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except Timeout as error:
        raise ExportError(f"another export is working on {root}: wait for it to end") from error


def publish(bundle: Bundle, staged: Bundle, *, certificates: Iterable[Certificate]) -> Bundle:
    """Move staged files into a bundle, in place of everything that an earlier export made.

    Args:
        bundle: the bundle as it was opened.
        staged: the new files, in a folder on the same disk.
        certificates: what was measured of them.

    Returns:
        The bundle as it is now, opened.

    Raises:
        ContractError: another of the bundle's files changed meanwhile.
    """
    root = bundle.root
    files = {name: digest for name, digest in bundle.files.items() if not is_exported(name)}
    _write_manifest(root, files)
    _remove_exported(root)
    for name, digest in staged.files.items():
        fsync_file(staged.root / name)
        (root / name).parent.mkdir(exist_ok=True)
        (staged.root / name).replace(root / name)
        fsync_folder((root / name).parent)
        files[name] = digest
    for certificate in certificates:
        (root / certificate.path).parent.mkdir(exist_ok=True)
        write_json(root / certificate.path, certificate.to_json())
        files[certificate.path] = sha256_file(root / certificate.path)
    fsync_folder(root)
    _write_manifest(root, files)
    return Bundle.open(root)


def is_exported(name: str) -> bool:
    """Whether a bundle's file, by its name, is made by exports."""
    path = PurePosixPath(name)
    return path.parts[0] in _EXPORTED_FOLDERS or (
        len(path.parts) == 1 and (path.suffix == ".onnx" or name == INT8_RECORD)
    )


def _remove_exported(root: Path) -> None:
    for folder in _EXPORTED_FOLDERS:
        if (root / folder).exists():
            shutil.rmtree(root / folder)
    for file in (*root.glob("*.onnx"), root / INT8_RECORD):
        file.unlink(missing_ok=True)


def _write_manifest(root: Path, files: Mapping[str, str]) -> None:
    # Known digests, not those of whatever lies there now: a file that changed meanwhile must not become part of it.
    manifest = {"schema": SCHEMA, "cervix_version": __version__, "files": dict(sorted(files.items()))}
    write_json(root / MANIFEST, manifest)
