"""Opens the files that Keras models and weights are kept in.

A model is only opened from a `.keras` archive, only in Keras's safe mode, and only if it maps what its contract says.
HDF5 models (`.h5`) are not: Keras's safe mode does not hold for them, and they can run code. Weight files hold arrays
alone, which are read into a network of our own making.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cervix_engine.bundle.bundle import CONTRACT, MANIFEST, Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, UsageError
from cervix_engine.files import scratch_folder
from cervix_keras.start import KerasModel, load_keras

log = logging.getLogger(__name__)

KERAS_FILE = "model.keras"
WEIGHT_SUFFIXES = (".weights.h5", "_notop.h5", "_no_top.h5")
HDF5_SUFFIXES = (".h5", ".hdf5")
HDF5_REFUSED = (
    "HDF5 models are not opened, since they can run code: train with cervix-train, which writes a bundle with "
    "model.keras, and name that folder"
)

_ZIP, _HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A Keras model, what its inputs and outputs mean, and the bundle it came from, if any."""

    model: KerasModel
    contract: ModelContract
    bundle: Bundle | None


def open_model(path: Path) -> OpenedModel:
    """Open a bundle folder's model, or a `.keras` file beside a `contract.json`.

    Raises:
        UsageError: there is no such thing at `path`, or it is a format that is not opened.
        ContractError: a digest differs, or the file is not a Keras model that fits the contract.
    """
    if path.is_dir():
        return _of_bundle(Bundle.open(path), KERAS_FILE)
    refuse_hdf5(path)
    if path.suffix != ".keras":
        raise UsageError(f"{path}: expected a bundle folder or a .keras file")
    if not path.is_file():
        raise UsageError(f"no such model: {path}")
    if (path.parent / MANIFEST).is_file():
        return _of_bundle(Bundle.open(path.parent), path.name)
    log.warning("%s has no %s beside it: its digest is not checked", path, MANIFEST)
    contract = ModelContract.load(path.parent / CONTRACT)
    return OpenedModel(load_model(path, contract=contract), contract, None)


def _of_bundle(bundle: Bundle, name: str) -> OpenedModel:
    return OpenedModel(bundle_model(bundle, name), bundle.contract, bundle)


def bundle_model(bundle: Bundle, name: str = KERAS_FILE) -> KerasModel:
    """Read a bundle's model from bytes whose digest was checked.

    Raises:
        UsageError, ContractError: as `load_model`; ContractError also where the file is not in the bundle.
    """
    data = bundle.read(name)
    require_archive(bundle.root / name, data)
    # Keras reads from a path. A private copy of the checked bytes cannot change between check and reading.
    with scratch_folder() as folder:
        copy = folder / name
        copy.write_bytes(data)
        return load_model(copy, contract=bundle.contract)


def load_model(path: Path, *, contract: ModelContract) -> KerasModel:
    """Read a `.keras` file in safe mode and check that it maps what the contract says.

    Raises:
        UsageError: it is an HDF5 file, whatever its name.
        ContractError: it is no Keras archive, Keras refuses it, for example because it holds a Lambda, or it does not
            fit.
    """
    model = open_archive(path)
    check_signature(model, contract, name=path.name)
    return model


def open_archive(path: Path) -> KerasModel:
    """Read a `.keras` file in safe mode, whatever it maps.

    Raises:
        UsageError: it is an HDF5 file, whatever its name.
        ContractError: it is no Keras archive, or Keras refuses it, for example because it holds a Lambda.
    """
    require_archive(path, _start_of(path))
    try:
        return load_keras().saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever a layer's own code raises
        raise ContractError(f"Keras refuses {path.name}: {_reason(error)}") from error


def require_keras_model(bundle: Bundle) -> None:
    """Check that a bundle holds a Keras archive, by its first bytes, before any runtime sees it.

    Raises:
        UsageError: the model is an HDF5 file, whatever its name.
        ContractError: there is no model, or it is no Keras archive.
    """
    if KERAS_FILE in bundle:
        path = bundle.root / KERAS_FILE
        require_archive(path, _start_of(path))
        return
    for suffix in HDF5_SUFFIXES:
        if f"model{suffix}" in bundle:
            refuse_hdf5(bundle.root / f"model{suffix}")
    raise ContractError(f"{bundle.root} has no {KERAS_FILE}: train one with cervix-train")


def refuse_hdf5(path: Path) -> None:
    """Raise UsageError where a model's name says that it is an HDF5 file, whether or not it is there."""
    if path.suffix.lower() in HDF5_SUFFIXES:
        raise UsageError(f"{path}: {HDF5_REFUSED}")


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_HDF5))


def require_archive(path: Path, data: bytes) -> None:
    """Check by its first bytes that a file is a Keras archive.

    Raises:
        UsageError: it is an HDF5 file, whatever its name.
        ContractError: it is something else.
    """
    if data.startswith(_HDF5):
        raise UsageError(f"{path} is an HDF5 file: {HDF5_REFUSED}")
    if not data.startswith(_ZIP):
        raise ContractError(f"{path} is no Keras archive: it does not start as a zip file")


def check_signature(model: KerasModel, contract: ModelContract, *, name: str = KERAS_FILE) -> None:
    """Check that a Keras model takes and gives what the contract says.

    Raises:
        ContractError: naming got against expected.
    """
    expected = f"uint8 {(None, *contract.input_size, 3)} -> float32 {(None, len(contract.classes))}"
    try:
        sides: list[list[Any]] = [list(model.inputs), list(model.outputs)]
    except (AttributeError, TypeError) as error:
        raise ContractError(f"{name} is a {type(model).__name__} without a fixed input and output") from error
    got = " -> ".join(", ".join(f"{item.dtype} {tuple(item.shape)}" for item in side) for side in sides)
    if got != expected:
        raise ContractError(f"{name} maps {got}, its contract says {expected}")


def load_weights(network: KerasModel, path: Path) -> None:
    """Read a weights file as plain arrays into a network that already has its layers.

    Raises:
        UsageError: it does not fit the network, or leaves some of its layers without weights.
    """
    try:
        with warnings.catch_warnings():
            # Keras only warns of layers that it finds no weights for, and leaves them random.
            warnings.simplefilter("error", UserWarning)
            network.load_weights(path)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        raise UsageError(f"--weights {path} does not fit the {network.name} backbone: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """The beginning of what a library says at length."""
    return " ".join(str(error).split())[:200]


def _reason(error: Exception) -> str:
    """The first sentence: what follows in Keras's messages is advice to switch the safe mode off."""
    return f"{type(error).__name__}: {one_line(error).split('. ')[0].removesuffix('.')}"
