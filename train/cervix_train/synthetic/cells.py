"""Draws one cell of one of five kinds.

The kinds carry SIPaKMeD's class names and exaggerate what tells those apart: size of nucleus and cytoplasm, outline,
stain and the koilocytes' halo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from cervix_engine.values import Pixels

Colour = tuple[int, int, int]
Range = tuple[float, float]

LARGEST_PX = 160


@dataclass(frozen=True, slots=True)
class CellKind:
    """How one class looks; lengths are fractions of the tile's shorter side, colours are RGB.

    Attributes:
        side_px: range of the tile's sides.
        cytoplasm, nucleus: range of the radius.
        roughness: amplitude of the cytoplasm's outline, relative to its radius.
        corners: 0 for a round outline, else how many corners a polygonal one has.
        halo: clear ring around the nucleus, as a multiple of the nucleus' radius; 0 for none.
        nuclei: how many nuclei a cell has at most.
        density: how opaque the cytoplasm is, 0..1.
        stain, nucleus_stain: colours at full density.
    """

    side_px: tuple[int, int]
    cytoplasm: Range
    nucleus: Range
    roughness: float
    corners: int
    halo: float
    nuclei: int
    density: Range
    stain: Colour
    nucleus_stain: Colour


KINDS: dict[str, CellKind] = {
    "cervix_dyk": CellKind(
        (70, 112), (0.27, 0.38), (0.09, 0.14), 0.10, 0, 0.0, 1, (0.65, 0.9), (214, 128, 104), (58, 30, 48)
    ),
    "cervix_koc": CellKind(
        (92, 150), (0.36, 0.46), (0.09, 0.13), 0.05, 0, 1.9, 2, (0.5, 0.8), (150, 140, 186), (52, 40, 88)
    ),
    "cervix_mep": CellKind(
        (84, 128), (0.32, 0.42), (0.10, 0.15), 0.04, 0, 0.0, 1, (0.5, 0.75), (112, 150, 158), (70, 60, 104)
    ),
    "cervix_pab": CellKind(
        (70, 108), (0.26, 0.35), (0.16, 0.23), 0.03, 0, 0.0, 1, (0.55, 0.85), (118, 146, 150), (74, 62, 112)
    ),
    "cervix_sfi": CellKind(
        (104, 160), (0.38, 0.48), (0.04, 0.065), 0.09, 6, 0.0, 1, (0.25, 0.5), (206, 150, 168), (56, 44, 84)
    ),
}


def draw_tile(label: str, *, field: int, cell: int, seed: int, all_kinds_alike: bool = False) -> Pixels:
    """Draw one cell: `uint8 (height, width, 3)` RGB, 70 to `LARGEST_PX` px a side.

    The pixels depend on the arguments alone, never on how many tiles are drawn. Cells of one kind and `field` share
    its stain, light and focus; with `all_kinds_alike` those of every kind do, as on a real slide.

    Raises:
        KeyError: `label` is not one of `KINDS`.
    """
    import cv2
    import numpy as np

    kind = KINDS[label]
    kind_index = list(KINDS).index(label)
    slide = np.random.default_rng([seed, field] if all_kinds_alike else [seed, kind_index, field])
    gain = slide.normal(1.0, 0.07) * slide.normal(1.0, 0.03, 3)
    blur, noise = slide.uniform(0.4, 1.3), slide.uniform(1.5, 5.0)
    rng = np.random.default_rng([seed, kind_index, field, cell])
    height, width = (int(side) for side in rng.integers(kind.side_px[0], kind.side_px[1] + 1, 2))
    canvas = _background(height, width, rng=rng)
    _paint_neighbour(canvas, rng=rng)
    _paint_cell(canvas, kind, rng=rng)
    canvas = cv2.GaussianBlur(canvas, (0, 0), blur) * gain.astype(np.float32)
    canvas += rng.normal(0.0, noise, canvas.shape).astype(np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


Canvas = Any  # float32 (height, width, 3), 0..255


def _background(height: int, width: int, *, rng: np.random.Generator) -> Canvas:
    """Pale mucus with slow variations of light."""
    import cv2
    import numpy as np

    base = np.array([208, 206, 213], np.float32) + rng.normal(0, 4, 3).astype(np.float32)
    coarse = rng.normal(0.0, 6.0, (4, 4)).astype(np.float32)
    return base + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]


def _paint_neighbour(canvas: Canvas, *, rng: np.random.Generator) -> None:
    """In every other tile, part of another cell reaches in from a corner."""
    import numpy as np

    if rng.random() < 0.5:
        return
    height, width = canvas.shape[:2]
    corner = np.array([rng.choice([0.0, float(width)]), rng.choice([0.0, float(height)])])
    kind = list(KINDS.values())[int(rng.integers(len(KINDS)))]
    radius = min(height, width) * rng.uniform(0.15, 0.3)
    outline = _outline(corner, radius, rng=rng, roughness=0.08, stretch=1.2, corners=kind.corners)
    _fill(canvas, outline, kind.stain, density=rng.uniform(0.2, 0.5))


def _paint_cell(canvas: Canvas, kind: CellKind, *, rng: np.random.Generator) -> None:
    import numpy as np

    height, width = canvas.shape[:2]
    side = min(height, width)
    centre = np.array([width, height]) * (0.5 + rng.uniform(-0.06, 0.06, 2))
    cytoplasm = side * rng.uniform(*kind.cytoplasm)
    outline = _outline(
        centre, cytoplasm, rng=rng, roughness=kind.roughness, stretch=rng.uniform(1.0, 1.3), corners=kind.corners
    )
    density = rng.uniform(*kind.density)
    _fill(canvas, outline, _varied(kind.stain, rng=rng), density=density, rim=kind.halo > 0)
    nucleus = side * rng.uniform(*kind.nucleus)
    count = int(rng.integers(1, kind.nuclei + 1))
    middle = centre + rng.uniform(-0.15, 0.15, 2) * cytoplasm
    if kind.halo:
        halo = _outline(middle, nucleus * kind.halo, rng=rng, roughness=0.10, stretch=1.2, corners=0)
        _fill(canvas, halo, (214, 212, 219), density=rng.uniform(0.7, 0.95))
    for number in range(count):
        offset = np.array([(number - (count - 1) / 2) * 1.5 * nucleus, 0.0])
        _paint_nucleus(canvas, middle + offset, nucleus / count**0.5, kind=kind, rng=rng)


def _paint_nucleus(
    canvas: Canvas, centre: np.ndarray, radius: float, *, kind: CellKind, rng: np.random.Generator
) -> None:
    import numpy as np

    outline = _outline(centre, radius, rng=rng, roughness=0.05, stretch=rng.uniform(1.0, 1.35), corners=0)
    _fill(canvas, outline, _varied(kind.nucleus_stain, rng=rng), density=rng.uniform(0.7, 0.92))
    for _ in range(int(radius)):  # chromatin
        angle, reach = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0, 0.7)
        spot = centre + reach * np.array([np.cos(angle), np.sin(angle)])
        speck = _outline(spot, max(0.8, radius * 0.14), rng=rng, roughness=0.0, stretch=1.0, corners=0)
        _fill(canvas, speck, kind.nucleus_stain, density=0.4)


def _varied(colour: Colour, *, rng: np.random.Generator) -> Colour:
    """The colour, a little lighter or darker and shifted in hue."""
    shifted = [round(value * rng.normal(1.0, 0.05)) for value in colour]
    return shifted[0], shifted[1], shifted[2]


def _outline(
    centre: np.ndarray, radius: float, *, rng: np.random.Generator, roughness: float, stretch: float, corners: int
) -> np.ndarray:
    """A closed outline, `float64 (96, 2)` of (x, y): a turned ellipse or polygon with low harmonics added."""
    import numpy as np

    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    reach = np.ones_like(angle)
    for harmonic in range(2, 6):
        reach += rng.normal(0, roughness) / (harmonic - 1) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    if corners:
        sector = 2 * np.pi / corners
        reach *= np.cos(sector / 2) / np.cos((angle + rng.uniform(0, sector)) % sector - sector / 2)
    turn = rng.uniform(0, np.pi)
    x, y = reach * np.cos(angle) * stretch**0.5, reach * np.sin(angle) / stretch**0.5
    turned = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)
    return np.asarray(centre + radius * turned)


def _fill(canvas: Canvas, outline: np.ndarray, colour: Colour, *, density: float, rim: bool = False) -> None:
    """Blend `colour` into the canvas inside `outline`; with `rim`, the border is denser than the middle."""
    import cv2
    import numpy as np

    mask = np.zeros(canvas.shape[:2], np.uint8)
    # Four fractional bits: whole-pixel corners would make small nuclei visibly angular.
    cv2.fillPoly(mask, [np.rint(outline * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    weight = mask.astype(np.float32)[..., None] / 255 * density
    if rim:
        inside = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
        weight *= (0.6 + 0.4 * np.exp(-inside / 4))[..., None]
    canvas *= 1 - weight
    canvas += weight * np.array(colour, np.float32)
