"""Runs a certified bundle over directories of Pap-smear slide tiles.

Importing this package loads nothing heavy: neither a runtime nor OpenCV. It turns the runtimes' telemetry off, which
has to come before any of them is imported, here or by whoever uses this package.
"""

from cervix_engine.privacy import forbid_telemetry

__version__ = "0.1.0"

forbid_telemetry()
