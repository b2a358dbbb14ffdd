"""The runtimes: one file each, one register of them, one survey of what runs here, and the choice among it.

Names are imported when they are asked for: `--help` lists the register, and is to answer at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cervix_engine.backends.base import Backend, BackendInfo
    from cervix_engine.backends.register import objection, open_backend, open_graph, runtime_version
    from cervix_engine.backends.runtime import ARTEFACTS, Combination

__all__ = [
    "ARTEFACTS",
    "Backend",
    "BackendInfo",
    "Combination",
    "objection",
    "open_backend",
    "open_graph",
    "runtime_version",
]

_HOMES = {"Backend": "base", "BackendInfo": "base", "ARTEFACTS": "runtime", "Combination": "runtime"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'register')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
