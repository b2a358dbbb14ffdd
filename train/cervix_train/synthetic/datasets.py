"""Writes data sets of drawn cells: by class, without any order, or as tiles of slides."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cervix_engine.contract import SIPAKMED_CLASSES
from cervix_engine.errors import OutputExistsError
from cervix_train.synthetic.cells import LARGEST_PX, draw_tile

if TYPE_CHECKING:
    import numpy as np

    from cervix_engine.values import Pixels

CELLS_PER_FIELD = 2

# Slides with few and with many abnormal cells take turns; two of them have about as many cells of each class.
ABNORMAL_SHARES = (0.1, 0.7)
# Of the places on a slide, how many hold a tile: a map has to show gaps.
FILLED = 0.7


def write_drawn(out: Path, *, tiles: int, seed: int = 0, flat: bool = False) -> None:
    """Write `tiles` drawn tiles, as many of each class as of any other (give or take one).

    Args:
        out: a new or empty folder. It gets one folder per class with tiles named `FFF_CC.png` (field, cell);
            with `flat`, one folder `tiles/` whose names say nothing, and `manifest.csv` with path, label
            and group.
        tiles: how many in all.
        seed: the same seed gives the same pixels.
        flat: see `out`.

    Raises:
        OutputExistsError: `out` is not empty.
    """
    _require_empty(out)
    rows = []
    for index, (label, field, cell) in enumerate(_listing(tiles)):
        name = f"tiles/{index:06d}.png" if flat else f"{label}/{field:03d}_{cell:02d}.png"
        _write_png(out / name, draw_tile(label, field=field, cell=cell, seed=seed))
        rows.append((name, label, f"{label}/{field:03d}"))
    if flat:
        _write_manifest(out / "manifest.csv", rows)


def _listing(tiles: int) -> Iterator[tuple[str, int, int]]:
    """(label, field, cell), the classes taking turns."""
    labels = [item.name for item in SIPAKMED_CLASSES]
    for index in range(tiles):
        turn = index // len(labels)
        yield labels[index % len(labels)], 1 + turn // CELLS_PER_FIELD, 1 + turn % CELLS_PER_FIELD


def _write_png(path: Path, pixels: Pixels) -> None:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
    path.write_bytes(encoded.tobytes())


def _write_manifest(path: Path, rows: list[tuple[str, str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "group"))
        writer.writerows(rows)


def write_slides(out: Path, *, tiles: int, slides: int, seed: int = 0) -> None:
    """Write `tiles` drawn tiles of `slides` slides, and `manifest.csv` with path, label and group, which is the slide.

    Slides differ in stain, light and focus, and by turns have few and many abnormal cells, which lie close together.

    Args:
        out: a new or empty folder. It gets a folder per slide, with tiles named by location, `slide_01/x160_y320.png`.
        tiles: how many in all.
        slides: how many slides share them.
        seed: the same seed gives the same pixels.

    Raises:
        OutputExistsError: `out` is not empty.
    """
    _require_empty(out)
    rows = []
    for number in range(slides):
        name = f"slide_{number + 1:02d}"
        count = tiles // slides + (number < tiles % slides)
        for cell, (label, x, y) in enumerate(_laid_out(count, number=number, seed=seed)):
            pixels = draw_tile(label, field=number, cell=cell, seed=seed, all_kinds_alike=True)
            _write_png(out / name / f"x{x}_y{y}.png", pixels)
            rows.append((f"{name}/x{x}_y{y}.png", label, name))
    _write_manifest(out / "manifest.csv", rows)


def _laid_out(count: int, *, number: int, seed: int) -> Iterator[tuple[str, int, int]]:
    """(label, x, y) of a slide's tiles, in pixels of the slide: abnormal cells lie around a place of their own."""
    import numpy as np

    rng = np.random.default_rng([seed, number])
    columns = int(np.ceil((count / FILLED) ** 0.5))
    places = rng.permutation(columns**2)[:count]
    rows, columns_of = places // columns, places % columns
    focus_row, focus_column = rng.integers(columns, size=2)
    distance = np.hypot(rows - focus_row, columns_of - focus_column)
    labels = _labels(count, share=ABNORMAL_SHARES[number % len(ABNORMAL_SHARES)], rng=rng)
    for label, place in zip(labels, np.argsort(distance, kind="stable"), strict=True):
        yield label, int(columns_of[place]) * LARGEST_PX, int(rows[place]) * LARGEST_PX


def _labels(count: int, *, share: float, rng: np.random.Generator) -> list[str]:
    """Labels of a slide's cells, the abnormal ones first."""
    abnormal = [item.name for item in SIPAKMED_CLASSES if item.category == "abnormal"]
    others = [item.name for item in SIPAKMED_CLASSES if item.category != "abnormal"]
    ill = round(share * count)
    return [str(name) for name in (*rng.choice(abnormal, ill), *rng.choice(others, count - ill))]


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputExistsError(f"{out} exists and is not an empty folder")
