"""Opens Keras models: only `.keras`, only in safe mode, only after the digest was checked, only if they fit."""

from __future__ import annotations

import csv
import io
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cervix_engine.bundle.bundle import MANIFEST, Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, UsageError
from cervix_keras.runtime import KerasModel, load_keras
from cervix_train.data.dataset import Split

log = logging.getLogger(__name__)

SPLIT_FILE = "training/split.csv"


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A Keras model and what its inputs and outputs mean.

    Attributes:
        splits: path relative to the data set -> split, as the training that made the bundle drew it; empty
            where the model does not remember.
    """

    model: KerasModel
    contract: ModelContract
    splits: Mapping[str, Split]


def open_model(path: Path) -> OpenedModel:
    """Open a bundle folder, or a `.keras` file beside a `contract.json`.

    Raises:
        UsageError: there is no such thing at `path`, or it is a format that is not opened.
        ContractError: a digest differs, or the file is not a Keras model that fits the contract.
    """
    if path.is_dir():
        return _open_bundle(path, "model.keras")
    if path.suffix.lower() in (".h5", ".hdf5"):
        raise UsageError(f"{path}: .h5 models are not opened, they can run code on loading: save it as .keras")
    if path.suffix != ".keras":
        raise UsageError(f"{path}: expected a bundle folder or a .keras file")
    if not path.is_file():
        raise UsageError(f"no such model: {path}")
    if (path.parent / MANIFEST).is_file():
        return _open_bundle(path.parent, path.name)
    log.warning("%s has no %s beside it: its digest is not checked", path, MANIFEST)
    contract = ModelContract.load(path.parent / "contract.json")
    return OpenedModel(load_model(path, contract=contract), contract, {})


def load_model(path: Path, *, contract: ModelContract) -> KerasModel:
    """Read a `.keras` file in safe mode and check its input and output against the contract.

    Raises:
        ContractError: it cannot be read, or does not fit.
    """
    keras = load_keras()
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ContractError(f"{path.name} cannot be opened as a Keras model: {reason}") from error
    _check_fit(model, contract, name=path.name)
    return model


def _open_bundle(root: Path, name: str) -> OpenedModel:
    bundle = Bundle.open(root)
    data = bundle.read(name)
    # Keras reads from a path. A private copy of the checked bytes cannot change between check and reading.
    with tempfile.TemporaryDirectory(prefix="cervix-") as folder:
        copy = Path(folder) / name
        copy.write_bytes(data)
        model = load_model(copy, contract=bundle.contract)
    return OpenedModel(model, bundle.contract, _splits(bundle))


def _splits(bundle: Bundle) -> dict[str, Split]:
    if SPLIT_FILE not in bundle:
        return {}
    text = bundle.read(SPLIT_FILE).decode("utf-8", "surrogateescape")
    try:
        return {row["path"]: cast("Split", row["split"]) for row in csv.DictReader(io.StringIO(text, newline=""))}
    except (csv.Error, KeyError) as error:
        raise ContractError(f"the bundle's {SPLIT_FILE} is malformed: {error}") from error


def _check_fit(model: KerasModel, contract: ModelContract, *, name: str) -> None:
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ContractError(
            f"{name} has {len(model.inputs)} inputs and {len(model.outputs)} outputs, expected one each"
        )
    got = (tuple(model.inputs[0].shape), model.inputs[0].dtype, tuple(model.outputs[0].shape))
    expected = ((None, *contract.input_size, 3), "uint8", (None, len(contract.classes)))
    if got != expected:
        raise ContractError(f"{name} has (input, dtype, output) {got}, its contract says {expected}")
