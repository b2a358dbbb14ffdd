"""The runtimes: one file each, one register of them, one survey of what runs here, and the choice among it."""

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
