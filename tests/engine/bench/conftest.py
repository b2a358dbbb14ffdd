"""Drawn tiles and the tiny bundle, made once; as the tests of runs use them."""

from __future__ import annotations

from engine.run.conftest import bundle, tiles

__all__ = ["bundle", "tiles"]
