"""Puts finished files into a bundle so that it can be opened after a crash at any point.

The order makes that so. First a manifest of the files that stay, then those that do not are removed and the new ones
moved in, then the full manifest. Files that no manifest lists are ignored, so at every moment the manifest on disk
lists only files that are there, whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cervix_engine.bundle.bundle import MANIFEST, SCHEMA, Bundle
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.bundle.engine_file import EngineFingerprint, engines_of, fingerprint_path
from cervix_engine.errors import ContractError, ExportError
from cervix_engine.files import fsync_file, fsync_folder, sha256_file, write_json
from cervix_engine.locks import PlaceLock, PlaceTakenError
from cervix_engine.version import __version__

# Hidden, so that no manifest ever lists them.
_LOCK, _STAGING = ".export.lock", ".export"

_CERTIFICATES, _ENGINES = "certificates", "engines"


@contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """Give an empty folder on the bundle's own disk, for one export at a time; it is removed at the end.

    Raises:
        ExportError: another export works on this bundle.
    """
    staging, lock = root / _STAGING, PlaceLock(root / _LOCK)
    try:
        lock.acquire()
    except PlaceTakenError as error:
        raise ExportError(f"another export is working on {root}{error}: wait for it to end") from error
    try:
        shutil.rmtree(staging, ignore_errors=True)  # a killed export's
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        lock.release()


@dataclass(frozen=True, slots=True)
class CandidateBundle(Bundle):
    """A bundle as it will be: those of its files that stay, and new ones that still lie in the folder `staging`."""

    staging: Path
    staged: Mapping[str, str]

    @classmethod
    def of(cls, bundle: Bundle, staging: Path) -> CandidateBundle:
        """The bundle with all that lies in `staging`."""
        paths = sorted(path for path in staging.rglob("*") if path.is_file())
        staged = {path.relative_to(staging).as_posix(): sha256_file(path) for path in paths}
        files = {**_kept(bundle, staged), **staged}
        return cls(bundle.root, bundle.digest, files, bundle.contract, staging, staged)

    def _path(self, name: str) -> Path:
        return (self.staging if name in self.staged else self.root) / name


def publish(candidate: CandidateBundle, certificates: Iterable[Certificate]) -> Bundle:
    """Move a candidate's staged files and its certificates into the bundle.

    A certificate replaces one that covers the same, and lies beside those of other machines.

    Returns:
        The bundle as it is now, opened.

    Raises:
        ContractError: another of the bundle's files changed meanwhile.
    """
    root = candidate.root
    placed = _placed(candidate, certificates)
    files = {name: digest for name, digest in candidate.files.items() if name not in {*candidate.staged, *placed}}
    _write_manifest(root, files)
    _remove_exported(root, but=files)
    for name, digest in candidate.staged.items():
        fsync_file(candidate.staging / name)
        (root / name).parent.mkdir(exist_ok=True)
        (candidate.staging / name).replace(root / name)
        fsync_folder((root / name).parent)
        files[name] = digest
    for name, certificate in placed.items():
        (root / name).parent.mkdir(exist_ok=True)
        write_json(root / name, certificate.to_json())
        files[name] = sha256_file(root / name)
    fsync_folder(root)
    _write_manifest(root, files)
    return Bundle.open(root)


def is_exported(name: str) -> bool:
    """Whether a bundle's file, by its name, is made by exports."""
    return PurePosixPath(name).parts[0] in (_CERTIFICATES, _ENGINES) or is_graph(name)


def is_graph(name: str) -> bool:
    """Whether a bundle's file, by its name, is an ONNX graph, or the record of how one was made."""
    path = PurePosixPath(name)
    return len(path.parts) == 1 and (path.suffix == ".onnx" or path.match("model.int8*.json"))


def _kept(bundle: Bundle, staged: Mapping[str, str]) -> dict[str, str]:
    """Which files of a bundle stay when `staged` ones are put into it, with their digests.

    1. Graphs stay where no graph is made anew.
    2. An engine stays, with all that is named after it, until it is built anew or its graph goes.
    3. A certificate stays while the file that it was measured on does.
    """
    files = dict(bundle.files)
    if any(map(is_graph, staged)):
        files = {name: digest for name, digest in files.items() if not is_graph(name)}
    for engine in engines_of(bundle):
        if engine in staged or not _stays(_source_of_engine(bundle, engine), {**files, **staged}):
            named_after_it = engine.removesuffix("engine")
            files = {name: digest for name, digest in files.items() if not name.startswith(named_after_it)}
    for name in [name for name in files if name.startswith(f"{_CERTIFICATES}/")]:
        if not _stays(_subject_of_certificate(bundle, name), {**files, **staged}):
            del files[name]
    return files


def _stays(needed: tuple[str, str] | None, files: Mapping[str, str]) -> bool:
    return needed is not None and files.get(needed[0]) == needed[1]


def _source_of_engine(bundle: Bundle, engine: str) -> tuple[str, str] | None:
    """The graph of an engine and that graph's digest; None where the bundle does not say."""
    with suppress(ContractError):
        data = bundle.read_json(fingerprint_path(engine), schema=EngineFingerprint.schema)
        fingerprint = EngineFingerprint.from_json(data)
        return fingerprint.source, fingerprint.source_sha256
    return None


def _subject_of_certificate(bundle: Bundle, name: str) -> tuple[str, str] | None:
    """The file that a certificate was measured on and its digest; None where it cannot be read."""
    with suppress(ContractError):
        certificate = _certificate(bundle, name)
        return certificate.file, certificate.file_sha256
    return None


def _certificate(bundle: Bundle, name: str) -> Certificate:
    return Certificate.from_json(bundle.read_json(name, schema=Certificate.schema))


def _placed(candidate: CandidateBundle, certificates: Iterable[Certificate]) -> dict[str, Certificate]:
    """Where each certificate goes."""
    others = {name: _certificate(candidate, name) for name in candidate.files if name.startswith(f"{_CERTIFICATES}/")}
    placed = {}
    for certificate in certificates:
        same = (name for name, other in others.items() if other.covers == certificate.covers)
        free = certificate.path if certificate.path not in others else certificate.path_beside_others
        placed[next(same, free)] = certificate
    return placed


def _remove_exported(root: Path, *, but: Mapping[str, str]) -> None:
    candidates = (*root.glob("*"), *root.glob(f"{_CERTIFICATES}/*"), *root.glob(f"{_ENGINES}/*"))
    for path in candidates:
        name = path.relative_to(root).as_posix()
        if path.is_file() and is_exported(name) and name not in but:
            path.unlink()


def _write_manifest(root: Path, files: Mapping[str, str]) -> None:
    # Known digests, not those of whatever lies there now: a file that changed meanwhile must not become part of it.
    manifest = {"schema": SCHEMA, "cervix_version": __version__, "files": dict(sorted(files.items()))}
    write_json(root / MANIFEST, manifest)
