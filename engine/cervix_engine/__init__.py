"""Runs a certified bundle over directories of Pap-smear slide tiles.

`from cervix_engine import Model` is the door for Python, see `model/`. Importing this package loads nothing heavy:
neither a runtime nor OpenCV. It turns the runtimes' telemetry off, which has to come before any of them is imported,
here or by whoever uses this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cervix_engine.privacy import forbid_telemetry
from cervix_engine.version import __version__

if TYPE_CHECKING:
    from cervix_engine.model import Model

__all__ = ["Model", "__version__"]

forbid_telemetry()


def __getattr__(name: str) -> Any:
    if name == "Model":
        from cervix_engine.model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
