"""Answers of a bundle's Keras model: `python -m cervix_keras._keras_answers JOB`, in a process of its own.

`JOB` is the JSON form of `AnswersJob`. The last line on standard output is JSON again: `{"error": …}` or
`{"keras": version}`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cervix_engine.bundle.bundle import Bundle
from cervix_keras._keras_to_onnx import KERAS_FILE, check_signature, load
from cervix_keras.child import serve


@dataclass(frozen=True, slots=True)
class AnswersJob:
    """What the process is asked for.

    Attributes:
        bundle, digest: the bundle's folder, and the digest that pins every byte that is opened.
        pixels: a `.npy` file, `uint8 (N, height, width, 3)`.
        answers: where the `.npy` file with `float32 (N, classes)` goes.
        batch_size: tiles a batch.
    """

    bundle: str
    digest: str
    pixels: str
    answers: str
    batch_size: int


def main(job_json: str) -> int:
    """Do one job and print its outcome as one line of JSON."""
    return serve(lambda: answer(AnswersJob(**json.loads(job_json))))


def answer(job: AnswersJob) -> dict[str, str]:
    """Write the model's answers; returns the versions that took part.

    Raises:
        ConversionError: the model cannot be opened safely, or is not what the contract says.
    """
    import keras

    bundle = Bundle.open(Path(job.bundle), expect_digest=job.digest)
    model = load(bundle.root / KERAS_FILE)
    check_signature(model, bundle.contract)
    pixels = np.load(job.pixels, mmap_mode="r")
    np.save(job.answers, np.asarray(model.predict(pixels, batch_size=job.batch_size, verbose=0), np.float32))
    return {"keras": keras.__version__}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
