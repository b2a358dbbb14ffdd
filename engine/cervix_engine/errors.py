"""Every error that the project raises on purpose, with the exit code it ends a command with.

CervixError                              exit
├─ UsageError(ValueError)                   2   options, missing or empty input
├─ ListingError                             1   the input cannot be listed in full
├─ ContractError(ValueError)                1   contract or bundle broken or altered
├─ DatasetError(ValueError)                 2   labelled tiles that cannot be used as given
├─ ExportError                              1
│  ├─ ConversionError                       1
│  ├─ EngineBuildError                      1
│  └─ ParityError                           4   carries its report
├─ BackendError                             1
│  ├─ BackendUnavailableError(ImportError)  1
│  ├─ EngineIncompatibleError               5
│  └─ InferenceError                        1
│     └─ DeviceMemoryError                  1
├─ TileError                                -   becomes a TileFailure row
│  ├─ TileReadError(OSError)
│  ├─ TileDecodeError
│  └─ TileShapeError
├─ DecodeWorkerError                        1
├─ FailureBudgetExceeded                    1
└─ OutputError                              1
   ├─ OutputExistsError(FileExistsError)    2
   ├─ OutputLockedError                     1
   └─ ResumeMismatchError                   1

A library's error is translated where it enters (`raise … from error`); a programmer's mistake stays
`ValueError` or `RuntimeError` and is never caught.
"""

from __future__ import annotations

from typing import ClassVar


class CervixError(Exception):
    """Base class. `exit_code` is what a command ends with when this error reaches it."""

    exit_code: ClassVar[int] = 1


class UsageError(CervixError, ValueError):
    """The command was asked for something that its input or options do not allow."""

    exit_code = 2


class ListingError(CervixError):
    """The input cannot be listed in full, so no count of its tiles could be trusted."""


class ContractError(CervixError, ValueError):
    """A contract or a bundle is broken, incomplete or was altered."""


class DatasetError(CervixError, ValueError):
    """Labelled tiles cannot be used as given: a layout, a manifest or a split is wrong."""

    exit_code = 2


class ExportError(CervixError):
    """A bundle could not be made."""


class ConversionError(ExportError):
    """The Keras model could not be turned into the graph asked for."""


class EngineBuildError(ExportError):
    """TensorRT could not build an engine."""


class ParityError(ExportError):
    """A deployable combination answers too differently from the Keras model.

    Attributes:
        report: the measured numbers, ready for JSON.
    """

    exit_code = 4

    def __init__(self, message: str, *, report: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.report = report or {}


class BackendError(CervixError):
    """A runtime failed."""


class BackendUnavailableError(BackendError, ImportError):
    """The runtime, device or precision asked for is not on this machine."""


class EngineIncompatibleError(BackendError):
    """A TensorRT engine was built for another GPU or another runtime version."""

    exit_code = 5


class InferenceError(BackendError):
    """A runtime failed while it computed a batch."""


class DeviceMemoryError(InferenceError):
    """The device's memory does not hold a batch: a smaller one may fit."""


class TileError(CervixError):
    """One tile cannot be predicted. The message names no file: it goes into the table as it is.

    Args:
        kind: a stable snake_case word that reports can count, such as `truncated`.
        message: what was found, got against expected.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class TileReadError(TileError, OSError):
    """The tile's bytes could not be read."""


class TileDecodeError(TileError):
    """The bytes are not a tile that has exactly one meaning as RGB pixels."""


class TileShapeError(TileError):
    """The tile's dimensions are outside what is accepted."""


class DecodeWorkerError(CervixError):
    """The processes that decode tiles cannot be started, or are killed again and again."""


class FailureBudgetExceeded(CervixError):  # noqa: N818 - a limit that was reached, not a fault
    """More tiles failed than the run allows."""


class OutputError(CervixError):
    """The table could not be written."""


class OutputExistsError(OutputError, FileExistsError):
    """A finished table lies where the new one should go."""

    exit_code = 2


class OutputLockedError(OutputError):
    """Another run is writing this table."""


class ResumeMismatchError(OutputError):
    """A partial run lies there, but it was started with another bundle, batch size or listing."""
