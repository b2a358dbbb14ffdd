"""Drawn slides, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.tiles.slides.drawn_slides import draw_slide, write_aperio, write_generic


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `aperio.svs` of 0.25 µm a pixel and `generic.tiff` of 0.5. Read only."""
    folder = tmp_path_factory.mktemp("slides")
    write_aperio(folder / "aperio.svs", draw_slide(1500, 1100, seed=1), downsamples=(1, 4))
    write_generic(folder / "generic.tiff", draw_slide(1300, 1000, seed=2))
    return folder
