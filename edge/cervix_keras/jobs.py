"""What an export or an import asks of a Keras model, each in a process of its own, of which nothing is believed.

A Keras file is the one input of an export that can carry code: what it does, crashes or exhausts stays out of the
process that certifies and publishes. The process gets its job as JSON, one of the types below, and prints JSON
on its last line: `{"keras": version}`, or `{"error": …}`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.imported import ImportStatement
from cervix_engine.errors import ConversionError
from cervix_engine.files import scratch_folder, sha256_file
from cervix_engine.privacy import keep_out_of_home
from cervix_engine.values import Pixels, Probabilities
from cervix_keras.graph import check_graph, last_line

logger = logging.getLogger(__name__)

# A ResNet-101 takes well under a minute; only a hang takes longer than this.
CONVERSION_TIMEOUT_S = 1800
ANSWERS_TIMEOUT_S = 7200

_BATCH = 32

_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",  # none of the jobs needs a GPU, and TensorFlow would take all of its memory
    "PYTHONSAFEPATH": "1",  # never import from the folder that the command happens to run in
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


@dataclass(frozen=True, slots=True)
class ConversionJob:
    """Write the model as an ONNX graph.

    Attributes:
        bundle, digest: the bundle's folder, and the digest that pins every byte that is opened.
        onnx_file: where the graph goes.
    """

    bundle: str
    digest: str
    onnx_file: str


@dataclass(frozen=True, slots=True)
class AnswersJob:
    """Write the model's answers.

    Attributes:
        bundle, digest: as `ConversionJob`.
        pixels: a `.npy` file, `uint8 (N, height, width, 3)`.
        answers: where the `.npy` file with `float32 (N, classes)` goes.
        batch_size: tiles a batch.
    """

    bundle: str
    digest: str
    pixels: str
    answers: str
    batch_size: int


@dataclass(frozen=True, slots=True)
class ImportJob:
    """Write a model that somebody else trained as one that takes raw pixels, and the answers of what was written.

    Attributes:
        model, sha256: a `.keras` file, and the digest of its bytes.
        statement: what is stated of it, JSON of the schema `cervix/import/1`.
        pixels, answers, batch_size: as `AnswersJob`.
        keras_file: where the model goes.
    """

    model: str
    sha256: str
    statement: str
    pixels: str
    answers: str
    batch_size: int
    keras_file: str


def onnx_from_keras(bundle: Bundle, onnx_file: Path, *, timeout_s: float = CONVERSION_TIMEOUT_S) -> str:
    """Write a bundle's Keras model as an ONNX graph that does what the bundle's contract says.

    Args:
        bundle: an opened bundle with a Keras model and golden tiles.
        onnx_file: where the graph goes.
        timeout_s: how long the conversion may take.

    Returns:
        The reference, such as `keras 3.15.1`.

    Raises:
        ConversionError: the model cannot be opened safely, is not what the contract says, or cannot be converted.
    """
    job = ConversionJob(str(bundle.root.resolve()), bundle.digest, str(onnx_file.resolve()))
    version = _run(job, what="the conversion", timeout_s=timeout_s)
    check_graph(onnx_file.read_bytes(), bundle.contract)
    return version


def keras_answers(bundle: Bundle, pixels: Pixels, *, batch_size: int) -> tuple[str, Probabilities]:
    """What computed them, such as `keras 3.15.1`, and the Keras model's answers, `float32 (N, classes)`.

    Raises:
        ConversionError: the model cannot be opened safely, or its process failed.
    """
    with scratch_folder() as folder:
        given, got = folder / "pixels.npy", folder / "answers.npy"
        np.save(given, pixels)
        job = AnswersJob(str(bundle.root.resolve()), bundle.digest, str(given), str(got), batch_size)
        version = _run(job, what="Keras's prediction", timeout_s=ANSWERS_TIMEOUT_S)
        return version, np.load(got, allow_pickle=False)


def import_keras(
    model: Path, statement: ImportStatement, pixels: Pixels, *, keras_file: Path
) -> tuple[str, Probabilities]:
    """Write somebody else's `.keras` file as a model that takes raw pixels.

    Args:
        model: the file.
        statement: what is stated of it.
        pixels: golden tiles, `uint8 (N, height, width, 3)`.
        keras_file: where the model goes.

    Returns:
        What computed, such as `keras 3.15.1`, and the written model's answers, `float32 (N, classes)`.

    Raises:
        ConversionError: the model cannot be opened safely, is not what is stated, or its process failed.
    """
    with scratch_folder() as folder:
        given, got = folder / "pixels.npy", folder / "answers.npy"
        np.save(given, pixels)
        stated = json.dumps(statement.to_json())
        digest = sha256_file(model)
        names = (str(given), str(got))
        job = ImportJob(str(model.resolve()), digest, stated, *names, _BATCH, str(keras_file.resolve()))
        version = _run(job, what="the import", timeout_s=ANSWERS_TIMEOUT_S)
        return version, np.load(got, allow_pickle=False)


def _run(job: ConversionJob | AnswersJob | ImportJob, *, what: str, timeout_s: float) -> str:
    """Do a job in a process of its own; returns what did it, such as `keras 3.15.1`.

    Raises:
        ConversionError: it failed, in its own words where it has any.
    """
    command = [sys.executable, "-m", "cervix_keras._jobs", type(job).__name__, json.dumps(asdict(job))]
    keep_out_of_home()
    environment = os.environ | _ENVIRONMENT
    try:
        done = subprocess.run(  # the child's exit code is part of its answer
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"{what} did not end within {timeout_s:g} s and was stopped") from error
    logger.debug("%s", done.stderr)
    if done.returncode < 0:
        hint = ", as a machine out of memory does" if done.returncode == -signal.SIGKILL else ""
        raise ConversionError(f"{what} was ended by signal {-done.returncode}{hint}")
    outcome = _outcome(last_line(done.stdout))
    if done.returncode or "keras" not in outcome:
        raise ConversionError(outcome.get("error") or f"{what} failed: {last_line(done.stderr)}")
    return f"keras {outcome['keras']}"


def _outcome(line: str) -> dict[str, str]:
    try:
        outcome = json.loads(line)
    except ValueError:
        return {}
    return outcome if isinstance(outcome, dict) else {}
