"""Folders that are searched for tiles."""

from __future__ import annotations

from pathlib import Path

from cervix_engine.tiles.listing import Listing


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def paths(listing: Listing) -> list[str]:
    return [tile.path for tile in listing]
