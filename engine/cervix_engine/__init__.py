"""Runs a certified bundle over directories of Pap-smear slide tiles.

Importing this package loads nothing heavy: neither a runtime nor OpenCV.
"""

__version__ = "0.1.0"
