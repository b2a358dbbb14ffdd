"""Where a training stands, on disk after every epoch, so that a killed one goes on as if nothing had happened.

Kept are the variables of model and optimiser (dropout's random states among them), the history, and what the
callbacks remember: Keras's own `BackupAndRestore` forgets how long `EarlyStopping` has been waiting.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.errors import OutputError, ResumeMismatchError
from cervix_engine.files import atomic_path
from cervix_keras.start import KerasModel

Arrays = list[npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class FitState:
    """A training after some whole epochs.

    Attributes:
        identity: digest of all that decides the training's course.
        values: the history so far, measure -> one value per epoch.
        best, best_epoch, wait: what `EarlyStopping` remembers; epochs from 0.
        variables: the model's.
        optimizer: the optimiser's.
        best_weights: the weights of the best epoch.
    """

    identity: str
    values: dict[str, list[float]]
    best: float | None
    best_epoch: int
    wait: int
    variables: Arrays
    optimizer: Arrays
    best_weights: Arrays

    @property
    def epochs(self) -> int:
        return len(self.values["loss"])

    def save(self, path: Path) -> None:
        """Write it to a `.npz` file, atomically: a kill while writing leaves the epoch before."""
        facts = {name: getattr(self, name) for name in ("identity", "values", "best", "best_epoch", "wait")}
        arrays = {
            f"{kind}_{number:05d}": array
            for kind in ("variables", "optimizer", "best_weights")
            for number, array in enumerate(getattr(self, kind))
        }
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, facts=np.array(json.dumps(facts)), **arrays)

    @classmethod
    def load(cls, path: Path, *, identity: str) -> FitState | None:
        """Read it back; None where there is none.

        Raises:
            ResumeMismatchError: it belongs to another training.
            OutputError: it cannot be read.
        """
        if not path.is_file():
            return None
        try:
            # Opened here: NumPy leaves it open when the archive turns out to be broken.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                facts = json.loads(str(stored["facts"]))
                arrays: dict[str, Any] = {
                    kind: [stored[name] for name in sorted(stored.files) if name.startswith(f"{kind}_")]
                    for kind in ("variables", "optimizer", "best_weights")
                }
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise OutputError(f"{path} cannot be read ({error}): delete it, or begin anew with --no-resume") from error
        if facts["identity"] != identity:
            raise ResumeMismatchError(
                f"{path} is of a training with other tiles, weights or settings: repeat its settings, or "
                "begin anew with --no-resume"
            )
        return cls(**facts, **arrays)


def restore(model: KerasModel, state: FitState) -> None:
    """Put the variables of a compiled model and its optimiser back, in place."""
    model.optimizer.build(model.trainable_variables)
    _assign(model.variables, state.variables)
    _assign(model.optimizer.variables, state.optimizer)


def snapshot(variables: Any) -> Arrays:
    """Copies of Keras variables' values."""
    return [np.array(variable) for variable in variables]


def _assign(variables: Any, values: Arrays) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
