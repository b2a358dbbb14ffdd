"""The process that does one job on a bundle's Keras model: `python -m cervix_keras._jobs NAME JOB`, see `jobs.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from cervix_engine.bundle.bundle import CONTRACT, Bundle
from cervix_engine.bundle.certificate import GATES
from cervix_engine.bundle.golden import REPLAYED, GoldenSet
from cervix_engine.bundle.imported import ImportStatement
from cervix_engine.bundle.outputs import check_outputs
from cervix_engine.errors import CervixError, ContractError, ConversionError
from cervix_engine.files import scratch_folder, sha256_file
from cervix_keras.graph import graph_from_keras
from cervix_keras.jobs import AnswersJob, ConversionJob, ImportJob
from cervix_keras.model_file import KERAS_FILE, bundle_model, load_model
from cervix_keras.raw_pixels import is_wrapped, raw_pixel_model
from cervix_keras.start import KerasModel, load_keras

# Tiles on which a model's own outputs are looked at.
_TRIED = 16


def main(name: str, job_json: str) -> int:
    """Do one job and print its outcome as one line of JSON."""
    fields = json.loads(job_json)
    try:
        if name == ConversionJob.__name__:
            convert(ConversionJob(**fields))
        elif name == ImportJob.__name__:
            bring_in(ImportJob(**fields))
        else:
            answer(AnswersJob(**fields))
        outcome = {"keras": load_keras().__version__}
    except CervixError as error:
        outcome = {"error": str(error)}
    print(json.dumps(outcome), flush=True)  # noqa: T201 - the protocol with the parent process
    return int("error" in outcome)


def convert(job: ConversionJob) -> None:
    """Write the bundle's Keras model as an ONNX graph that says what it was made from.

    Raises:
        CervixError: the file is no model that the contract describes, or cannot be converted.
    """
    import onnx

    bundle = Bundle.open(Path(job.bundle), expect_digest=job.digest)
    model = bundle_model(bundle)
    check_golden(model, GoldenSet.load(bundle))
    graph = graph_from_keras(model)
    sources = {f"cervix.{name}.sha256": bundle.files[name] for name in (CONTRACT, KERAS_FILE)}
    onnx.helper.set_model_props(graph, sources)
    Path(job.onnx_file).write_bytes(graph.SerializeToString())


def answer(job: AnswersJob) -> None:
    """Write the model's answers.

    Raises:
        CervixError: the file is no model that the contract describes.
    """
    model = bundle_model(Bundle.open(Path(job.bundle), expect_digest=job.digest))
    pixels = np.load(job.pixels, mmap_mode="r")
    np.save(job.answers, np.asarray(model.predict(pixels, batch_size=job.batch_size, verbose=0), np.float32))


def bring_in(job: ImportJob) -> None:
    """Write somebody else's model as one that takes raw pixels, and what it answers when it is read back.

    Raises:
        CervixError: the file is no model that the statement describes.
    """
    source, statement = Path(job.model), ImportStatement.from_json(json.loads(job.statement))
    with scratch_folder() as folder:
        # A private copy of the bytes whose digest is recorded: the file may change meanwhile.
        copy = folder / source.name
        copy.write_bytes(source.read_bytes())
        if sha256_file(copy) != job.sha256:
            raise ContractError(f"{source.name} changed while it was imported")
        raw_pixel_model(copy, statement).save(job.keras_file)
    pixels = np.load(job.pixels, mmap_mode="r")
    model = load_model(Path(job.keras_file), contract=statement.contract)
    # What is in front of the last layer, a softmax or nothing, is what the file itself gave.
    own = load_keras().Model(model.input, model.layers[-1].input) if is_wrapped(model) else model
    check_outputs(np.asarray(own.predict_on_batch(pixels[:_TRIED]), np.float32), stated=statement.output)
    np.save(job.answers, np.asarray(model.predict(pixels, batch_size=job.batch_size, verbose=0), np.float32))


def check_golden(model: KerasModel, golden: GoldenSet) -> None:
    """Check that the model still answers as the golden tiles record, on the first few of them.

    Raises:
        ConversionError: the golden set is another model's, or this machine computes differently.
    """
    pixels = golden.pixels(REPLAYED)
    answers = np.asarray(model(pixels, training=False))
    difference = float(np.abs(answers - golden.probabilities()[: len(pixels)]).max())
    limit = GATES["fp32"].replay_absdiff
    if not difference <= limit:
        raise ConversionError(
            f"{KERAS_FILE} answers the golden tiles differently than they record (by {difference:.3g}, limit "
            f"{limit:g}): they were made with another model; train again with cervix-train"
        )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
