"""A bundle: one folder that holds a model in all its forms, and the digests that say nothing was altered.

    bundle.json         SHA-256 of every other file; written last, atomically
    contract.json       what inputs and outputs mean
    model.keras         the reference
    model.onnx  model.fp16.onnx
    engines/            TensorRT engines, each with its fingerprint
    certificates/       one per file, backend and precision
    golden/             encoded tiles, digests of their pixels, Keras's probabilities
    training/           metrics, history, split manifest

A digest beside a file shows accidents; a pinned one (`expect_digest`) shows tampering.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, UsageError
from cervix_engine.files import local_path, sha256_bytes, sha256_file, write_json
from cervix_engine.version import __version__

SCHEMA = "cervix/bundle/1"
MANIFEST = "bundle.json"
CONTRACT = "contract.json"
DEFAULT_BUNDLE = Path("models/cervix")


def default_bundle() -> Path:
    """`$CERVIX_MODEL`, else `models/cervix`."""
    return local_path(os.environ.get("CERVIX_MODEL") or DEFAULT_BUNDLE)


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: every listed file was there and had the listed digest.

    Attributes:
        root: the folder.
        digest: hex SHA-256 of `bundle.json`, the bundle's identity.
        files: POSIX path relative to `root` -> hex SHA-256.
    """

    root: Path
    digest: str
    files: Mapping[str, str]
    contract: ModelContract

    @classmethod
    def open(cls, root: Path, *, expect_digest: str | None = None) -> Bundle:
        """Check every file of the bundle against its digest, then read the contract.

        Raises:
            UsageError: there is no bundle at `root`.
            ContractError: a file is missing or altered, or the bundle is not the pinned one.
        """
        manifest_bytes = _read_manifest(root)
        digest = sha256_bytes(manifest_bytes)
        if expect_digest is not None and digest != expect_digest.lower():
            raise ContractError(f"the bundle's digest is {digest}, expected {expect_digest.lower()}")
        files = _parse_manifest(manifest_bytes)
        for name, expected in files.items():
            _check(root / name, name, expected)
        return cls(root, digest, files, ModelContract.load(root / CONTRACT))

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, hashed again, so that what a runtime parses is what was certified.

        Raises:
            ContractError: the file is not part of the bundle, or has changed since.
        """
        if name not in self.files:
            raise ContractError(f"the bundle has no {name}: make it with cervix-export")
        try:
            data = self._path(name).read_bytes()
        except OSError as error:
            raise ContractError(f"cannot read the bundle's {name}: {error.strerror}") from error
        if sha256_bytes(data) != self.files[name]:
            raise ContractError(f"{name} was altered while the bundle was in use")
        return data

    def _path(self, name: str) -> Path:
        return self.root / name

    def read_json(self, name: str, *, schema: str) -> dict[str, Any]:
        """A listed JSON file of the given schema.

        Raises:
            ContractError: absent, altered, not JSON, or of another schema.
        """
        try:
            data = json.loads(self.read(name))
        except ValueError as error:
            raise ContractError(f"{name} is not JSON: {error}") from error
        if not isinstance(data, dict) or data.get("schema") != schema:
            raise ContractError(f"{name}: expected the schema {schema!r}")
        return data


def seal(root: Path) -> Bundle:
    """Write `bundle.json` over all other files of `root`, atomically, and open the result.

    Until this is called after a change, opening the bundle fails: a half-written bundle is never used.

    Raises:
        ContractError: something in `root` is neither a plain file nor a folder, or there is no contract.
    """
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if _belongs(path, root))
    files = {name: _digest(root / name, name) for name in names}
    write_json(root / MANIFEST, {"schema": SCHEMA, "cervix_version": __version__, "files": files})
    return Bundle.open(root)


def listed_files(root: Path) -> frozenset[str]:
    """The files that a bundle's manifest lists, altered or not; none where it cannot be read."""
    try:
        return frozenset(_parse_manifest(_read_manifest(root)))
    except (ContractError, UsageError):
        return frozenset()


def _belongs(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not path.is_dir() and not hidden and path != root / MANIFEST


def _read_manifest(root: Path) -> bytes:
    if not os.path.isdir(root):  # noqa: PTH112 - Path.is_dir raises where a name is too long
        raise UsageError(f"no bundle at {root}: train one with cervix-train, or name one with --model or $CERVIX_MODEL")
    try:
        return (root / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{root} is not a bundle: it has no {MANIFEST}") from error
    except OSError as error:
        raise ContractError(f"cannot read {root / MANIFEST}: {error.strerror}") from error


def _parse_manifest(data: bytes) -> dict[str, str]:
    try:
        manifest = json.loads(data)
        files = {str(name): str(digest) for name, digest in manifest["files"].items()}
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"{MANIFEST} is malformed: {error}") from error
    if schema != SCHEMA:
        raise ContractError(f"{MANIFEST} has schema {schema!r}, expected {SCHEMA!r}")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ContractError(f"{MANIFEST} names a path outside the bundle: {name!r}")
        if path.as_posix() != name or not path.parts or not name.isprintable():
            raise ContractError(f"{MANIFEST} names a path that is no file's: {name!r}")
    if CONTRACT not in files:
        # What it does not list is not covered by its digest, so it must not be read.
        raise ContractError(f"{MANIFEST} does not list {CONTRACT}")
    return files


def _check(path: Path, name: str, expected: str) -> None:
    actual = _digest(path, name)
    if actual != expected:
        raise ContractError(f"the bundle's {name} was altered: its digest is {actual[:12]}…, expected {expected[:12]}…")


def _digest(path: Path, name: str) -> str:
    try:
        # A link may lead out of the bundle; a FIFO would never end.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ContractError(f"the bundle's {name} is not a plain file")
        return sha256_file(path)
    except FileNotFoundError as error:
        raise ContractError(f"the bundle's {name} is missing") from error
    except OSError as error:
        raise ContractError(f"cannot read the bundle's {name}: {error.strerror}") from error
