"""What TensorRT says, as log records: by itself it writes to standard error, and an error's reason is nowhere else."""

from __future__ import annotations

import gc
import logging
from typing import Any

logger = logging.getLogger(__name__)


def collected_messages(trt: Any) -> Any:
    """A TensorRT logger, to be handed to its builder, parser or runtime.

    It has `last_error`, the reason of whatever just failed, and all `warnings`. What failed before is let go of first:
    TensorRT holds a lock while it hands over a message, and would wait for itself if Python's garbage collection came
    just then, and ended a builder or an engine that an exception had kept.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
    """
    gc.collect()

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last_error = "it gave no reason"
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = message
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            logger.debug("%s: %s", severity, message)

    return Messages()
