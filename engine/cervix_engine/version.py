"""The version of all four packages, which are one distribution."""

from __future__ import annotations

__version__ = "0.2.0"
