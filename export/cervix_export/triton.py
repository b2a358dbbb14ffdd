"""Writes a model repository for Triton Inference Server of a bundle's graphs and TensorRT engines.

    DIR/cervix-fp16/config.pbtxt     what Triton is told: inputs, outputs, dynamic batching, instances
                    labels.txt       class names, in output order
                    contract.json    what the pixels mean, for clients
                    1/model.onnx     a version; a file of other bytes becomes the next one

Source: Triton Inference Server, "Model Repository" and "Model Configuration"; the schema is its `model_config.proto`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from cervix_engine.backends.survey import certificates
from cervix_engine.bundle.bundle import CONTRACT, Bundle
from cervix_engine.bundle.engine_file import engines_of, read_fingerprint
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, OutputError, OutputExistsError, UsageError
from cervix_engine.files import atomic_path, fsync_folder, output_errors, sha256_file
from cervix_engine.outputs.places import require_apart, require_regular
from cervix_export.graphs.from_keras import HALF_FILE, INT8_FILE, ONNX_FILE
from cervix_keras.graph import INPUT, OUTPUT

logger = logging.getLogger(__name__)

CONFIG = "config.pbtxt"
# Of the folders of its models.
_PREFIX = "cervix-"

# A request waits this long for others to fill its batch; one batch takes longer to compute.
_QUEUE_DELAY_US = 2000
_USUAL_BATCH, _MAX_BATCH = 32, 64

_GRAPHS = {"fp32": ONNX_FILE, "fp16": HALF_FILE, "int8": INT8_FILE}

# Of the models that a repository gets of graphs; those of engines are known once these are built.
USUAL_NAMES = tuple(f"cervix-{precision}" for precision in _GRAPHS)


@dataclass(frozen=True, slots=True)
class TritonModel:
    """One model of a repository.

    Attributes:
        name: of its folder.
        artefact: the bundle's file.
        platform: what of Triton's runs it.
        instances: where: on a GPU, or wherever the server can.
        usual_batch, max_batch: tiles.
    """

    name: str
    artefact: str
    platform: Literal["onnxruntime_onnx", "tensorrt_plan"]
    instances: Literal["KIND_AUTO", "KIND_GPU"]
    usual_batch: int
    max_batch: int

    @property
    def file(self) -> str:
        return "model.onnx" if self.platform == "onnxruntime_onnx" else "model.plan"


def check_repository(folder: Path, root: Path, *, names: Collection[str] = USUAL_NAMES) -> None:
    """Refuse, before any work, a repository that takes nothing of the bundle at `root`.

    Raises:
        UsageError: it lies in the bundle, below what is no folder, or holds models of other classes or another size.
        OutputExistsError: a model of somebody else has a name that is ours.
        OutputError: it cannot be written.
    """
    require_apart(folder, [root])
    place = folder.resolve()
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{folder} cannot be a folder: {there} is none")
    if not os.access(there, os.W_OK):
        raise OutputError(f"cannot write {folder}: no permission in {there}")
    for name in names:
        _require_own(folder / name)
    if (root / CONTRACT).is_file():  # else the export itself says what is missing
        _require_same_tiles(folder, ModelContract.load(root / CONTRACT))


def _require_same_tiles(folder: Path, contract: ModelContract) -> None:
    """Raises UsageError where models of the repository, old versions among them, take or give something else."""
    for path in sorted(folder.glob(f"{_PREFIX}*/{CONTRACT}")):
        require_regular(path)
        try:
            held = ModelContract.load(path)
        except ContractError as error:
            raise UsageError(f"{path.parent} holds no model of cervix-export: {error}; name another folder") from error
        if (held.class_names, held.input_size) != (contract.class_names, contract.input_size):
            raise UsageError(
                f"{path.parent} is another model's: tiles of {_tiles_in_words(held)}, this bundle's are of "
                f"{_tiles_in_words(contract)}; name another folder"
            )


def _tiles_in_words(contract: ModelContract) -> str:
    height, width = contract.input_size
    return f"{height} x {width} pixels and the classes {', '.join(contract.class_names)}"


def write_repository(bundle: Bundle, folder: Path) -> list[TritonModel]:
    """Write a bundle's certified files into a model repository, which other models and older versions may share.

    Args:
        bundle: an exported bundle.
        folder: the repository.

    Returns:
        What it now holds of the bundle. A file that no certificate speaks well of is left out, and the log says so.

    Raises:
        ContractError: the bundle has no certified graph.
        UsageError, OutputError: as `check_repository`.
    """
    models = list(_models(bundle))
    if not models:
        raise ContractError(f"{bundle.root} has no file with a certificate that passed: export it first")
    check_repository(folder, bundle.root, names=[model.name for model in models])
    for model in models:
        _write(bundle, model, folder / model.name)
    return models


def _require_own(folder: Path) -> None:
    """Raises OutputExistsError where a model of this name lies there that is of somebody else."""
    config = folder / CONFIG
    for path in (folder / "labels.txt", folder / CONTRACT, config):
        require_regular(path)
    with output_errors(f"cannot look at {config}"):
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()
        if config.is_file():
            ours = "cervix.artefact" in config.read_text("utf-8", "replace")
        else:  # as a call that was killed leaves it: the contract comes first, and the configuration last
            ours = CONTRACT in names or names <= {"labels.txt"}
        if not ours:
            raise OutputExistsError(f"{folder} is there already, and no model that was written here: move it away")


def _models(bundle: Bundle) -> Iterator[TritonModel]:
    passed = {item.file for item in certificates(bundle) if item.passed}
    for precision, name in _GRAPHS.items():
        if name in passed:
            yield TritonModel(f"{_PREFIX}{precision}", name, "onnxruntime_onnx", "KIND_AUTO", _USUAL_BATCH, _MAX_BATCH)
        elif name in bundle:
            logger.warning("left out of the model repository: %s, of which no certificate passed", name)
    for name in engines_of(bundle):
        mark = read_fingerprint(bundle, name)
        if mark.runtime != "tensorrt":
            logger.warning("left out of the model repository: %s, since Triton runs no %s", name, mark.runtime)
        elif name not in passed:
            logger.warning("left out of the model repository: %s, of which no certificate passed", name)
        else:
            stem = PurePosixPath(name).stem
            yield TritonModel(f"{_PREFIX}{stem}", name, "tensorrt_plan", "KIND_GPU", mark.opt_batch, mark.max_batch)


def _write(bundle: Bundle, model: TritonModel, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # What the configuration speaks of lies there before it does.
    _write_file(folder / CONTRACT, bundle.read(CONTRACT))
    _write_file(folder / "labels.txt", "".join(f"{name}\n" for name in bundle.contract.class_names).encode())
    _write_version(bundle, model, folder)
    _write_file(folder / CONFIG, config_of(model, bundle).encode())


def _write_file(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _write_version(bundle: Bundle, model: TritonModel, folder: Path) -> None:
    """Add a version where the newest is not the same file."""
    newest = max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0)
    held = folder / str(newest) / model.file
    if held.is_file() and sha256_file(held) == bundle.files[model.artefact]:
        return
    # Servers that watch a repository take a version as soon as it has its name, so it gets that when it is whole.
    unfinished = folder / f".{newest + 1}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    _write_file(unfinished / model.file, bundle.read(model.artefact))
    unfinished.rename(folder / str(newest + 1))
    fsync_folder(folder)


def config_of(model: TritonModel, bundle: Bundle) -> str:
    """A model's `config.pbtxt`, protobuf text of Triton's `ModelConfig`."""
    height, width = bundle.contract.input_size
    told = {
        "cervix.pixels": pixels_in_words(bundle.contract),
        "cervix.artefact": model.artefact,
        "cervix.artefact_sha256": bundle.files[model.artefact],
        "cervix.bundle_sha256": bundle.digest,
    }
    parameters = "".join(
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}\n" for key, value in told.items()
    )
    return f"""\
# {told["cervix.pixels"]}
name: {_text(model.name)}
platform: {_text(model.platform)}
max_batch_size: {model.max_batch}
input [ {{ name: {_text(INPUT)} data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] }} ]
output [
  {{
    name: {_text(OUTPUT)}
    data_type: TYPE_FP32
    dims: [ {len(bundle.contract.class_names)} ]
    label_filename: "labels.txt"
  }}
]
dynamic_batching {{
  preferred_batch_size: [ {model.usual_batch} ]
  max_queue_delay_microseconds: {_QUEUE_DELAY_US}
}}
instance_group [ {{ count: 1 kind: {model.instances} }} ]
{parameters}"""


def pixels_in_words(contract: ModelContract) -> str:
    """What a client must send, in one sentence."""
    height, width = contract.input_size
    return (
        f"Tiles are raw pixels: uint8, {height} x {width}, {contract.channel_order}, not scaled, not normalised; "
        "decode and resize them with cervix_engine.tiles.preprocess.preprocess and contract.json, never otherwise."
    )


def _text(value: str) -> str:
    # Of JSON's escapes, protobuf's text form has all that ASCII needs.
    return json.dumps(value, ensure_ascii=False)
