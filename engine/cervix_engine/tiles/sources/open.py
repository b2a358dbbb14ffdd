"""Opens what a user named as TILES."""

from __future__ import annotations

import os
from pathlib import Path

from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.sources.source import TileSource


def open_source(name: str | os.PathLike[str], *, follow_links: bool = False) -> TileSource:
    """The source that `name` names: a folder.

    Args:
        name: a path.
        follow_links: for a folder, as there.

    Raises:
        UsageError: there is nothing of that name, or nothing that tiles can come from.
    """
    return Folder(Path(name), follow_links)
