"""Opens what a user named as TILES."""

from __future__ import annotations

import os
from pathlib import Path

from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.sources.slides import WholeSlides, is_named_slide
from cervix_engine.tiles.sources.source import TileSource


def open_source(
    name: str | os.PathLike[str],
    *,
    follow_links: bool = False,
    grid: GridRules | None = None,
    previews: Path | None = None,
) -> TileSource:
    """The source that `name` names: a folder, or whole slides.

    Args:
        name: a path.
        follow_links: for a folder, as there.
        grid: how whole slides are cut, of which `name` is one or a folder; None takes a folder's tiles, and cuts a
            slide by default.
        previews: for whole slides, as there.

    Raises:
        UsageError: there is nothing of that name, or nothing that tiles can come from.
    """
    if grid is not None or is_named_slide(name):
        return WholeSlides.named(Path(name), grid or GridRules(), follow_links=follow_links, previews=previews)
    return Folder(Path(name), follow_links)
