"""What a bundle keeps of its training and validation tiles, so that a run can be compared with them: `drift.json`.

A panel is some measures with the spread of each class, so that a slide with other classes is not strange for that, and
axes: those along which the measures vary independently, or those along which known changes of colour stand out most
from what groups differ by. What distance means along an axis is how far tiles vary on it.
How far a number of tiles is off by chance is not derived, but was tried: groups of tiles were taken away, the rest was
the reference, and runs were drawn of the groups, whole ones, since the tiles of a field or slide resemble each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.drift.measures import BY_NAME
from cervix_engine.errors import ContractError
from cervix_engine.files import write_json

FILE = "drift.json"

# Beyond so many deviations a tile is strange, however far: one wrecked tile must not make a run strange.
CLIPPED_AT = 4.0
# What the two stored percentiles of a distance are.
LIMIT_SHARE, FAR_SHARE = 0.05, 0.01

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """How M measures of tiles of K classes vary.

    Attributes:
        measures: their names.
        means, deviations: `(K, M)`, by class.
        axes: `(M, A)`, from standardised measures to A others of unit spread.
    """

    measures: tuple[str, ...]
    means: Floats
    deviations: Floats
    axes: Floats

    def scores(self, values: Floats, classes: npt.NDArray[np.intp]) -> Floats:
        """Of N tiles, `(N, M)` measures and their classes: `(N, M + A)` scores of mean 0 where nothing has changed."""
        standard = ((values - self.means[classes]) / self.deviations[classes]).clip(-CLIPPED_AT, CLIPPED_AT)
        return np.concatenate([standard, (standard @ self.axes).clip(-CLIPPED_AT, CLIPPED_AT)], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A scale, and what chance makes of it.

    Attributes:
        scale: of the measures.
        sizes: `(S,)`, ascending: numbers of tiles for which chance was tried.
        chance: `(S, M + A)`, root mean square of the mean score of that many tiles, of measures and axes.
        limits: `(S, 2)`, the distances that 5 % and 1 % of runs of that many tiles exceed.
        tiles, groups: that it was made from.
        changes: what each axis tells apart; empty where the axes are only independent.
    """

    scale: Scale
    sizes: Floats
    chance: Floats
    limits: Floats
    tiles: int
    groups: int
    changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        scale, count, sizes = self.scale, len(self.scale.measures), len(self.sizes)
        of_classes, axes = (len(scale.means), count), len(self.changes) or count
        _require("means", scale.means, of_classes)
        _require("deviations", scale.deviations, of_classes)
        _require("axes", scale.axes, (count, axes))
        _require("chance", self.chance, (sizes, count + axes))
        _require("limits", self.limits, (sizes, 2))
        positive = all((array > 0).all() for array in (scale.deviations, self.sizes, self.chance, self.limits))
        if not sizes or not positive or (np.diff(self.sizes) <= 0).any() or (np.diff(self.limits) <= 0).any():
            raise ContractError(f"{FILE}: expected positive deviations and limits, and ascending sizes")
        if unknown := [name for name in (*scale.measures, *self.changes) if name not in BY_NAME]:
            raise ContractError(f"{FILE}: unknown measures {unknown}")

    @property
    def fewest_tiles(self) -> int:
        """Below it, nothing is said."""
        return int(self.sizes[0])

    def by_chance(self, means: Floats, tiles: int) -> Floats:
        """The mean scores `(M + A,)` of so many tiles, in units of what chance makes of them."""
        scores: Floats = means / _between(self.sizes, self.chance, tiles)
        return scores

    def distance(self, means: Floats, tiles: int) -> float:
        """How far off the mean scores of so many tiles are; 1 is the limit that 5 % of runs of like tiles exceed."""
        axes = self.by_chance(means, tiles)[len(self.scale.measures) :]
        return float(root_mean_square(axes) / _between(self.sizes, self.limits, tiles)[0])

    def share(self, distance: float, tiles: int) -> float:
        """The share of runs of so many tiles of the same data that are as far off, as the two limits tell it."""
        decades = (distance - 1) / self._step(tiles)
        return min(1.0, LIMIT_SHARE * math.exp(math.log(FAR_SHARE / LIMIT_SHARE) * decades))

    def limit(self, share: float, tiles: int) -> float:
        """The distance that this share of runs of so many tiles of the same data exceeds: the inverse of `share`."""
        return 1 + self._step(tiles) * math.log(share / LIMIT_SHARE) / math.log(FAR_SHARE / LIMIT_SHARE)

    def _step(self, tiles: int) -> float:
        """From the distance of one limit to that of the other."""
        near, far = _between(self.sizes, self.limits, tiles)
        return float(far / near) - 1

    def to_json(self) -> dict[str, Any]:
        arrays = {name: _digits(getattr(self.scale, name)) for name in _OF_SCALE}
        arrays |= {name: _digits(getattr(self, name)) for name in _OF_CHANCE}
        changes = {"changes": list(self.changes)} if self.changes else {}
        return {"measures": list(self.scale.measures), "tiles": self.tiles, "groups": self.groups, **changes, **arrays}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Panel:
        arrays = {name: np.array(data[name], np.float64) for name in (*_OF_SCALE, *_OF_CHANCE)}
        scale = Scale(tuple(data["measures"]), arrays["means"], arrays["deviations"], arrays["axes"])
        sizes, chance, limits = (arrays[name] for name in _OF_CHANCE)
        changes = tuple(data.get("changes", ()))
        return cls(scale, sizes, chance, limits, tiles=data["tiles"], groups=data["groups"], changes=changes)


_OF_SCALE = ("means", "deviations", "axes")
_OF_CHANCE = ("sizes", "chance", "limits")


def _require(name: str, array: Floats, shape: tuple[int, ...]) -> None:
    if array.shape != shape or not np.isfinite(array).all():
        raise ContractError(f"{FILE}: {name} is of the shape {array.shape}, expected finite numbers of {shape}")


def _between(sizes: Floats, rows: Floats, tiles: int) -> Floats:
    """The row for so many tiles: chance falls with their number as a power of it, up to the largest that was tried."""
    logs = np.log(sizes)
    return np.array([np.interp(math.log(tiles), logs, column) for column in rows.T])


def _digits(array: Floats) -> Any:
    """Lists of numbers of six digits: more say nothing, and take room."""
    return [_digits(row) for row in array] if array.ndim > 1 else [float(f"{value:.6g}") for value in array]


def root_mean_square(values: Floats) -> Floats:
    """Over the last axis."""
    mean: Floats = np.sqrt((values**2).mean(axis=-1))
    return mean


@dataclass(frozen=True, slots=True)
class DriftReference:
    """The panels of a bundle.

    Attributes:
        images: of what tiles look like.
        answers: of what the network says of tiles that it did not learn from; None where these are too few.
        colours: of the directions in which colours are known to change; None in bundles of version 0.2.
    """

    images: Panel
    answers: Panel | None
    colours: Panel | None = None

    schema: ClassVar[str] = "cervix/drift/1"

    def save(self, root: Path) -> None:
        """Write it into the bundle folder `root`, which the caller then seals."""
        panels = {"images": self.images.to_json(), "answers": self.answers.to_json() if self.answers else None}
        colours = {"colours": self.colours.to_json()} if self.colours else {}
        write_json(root / FILE, {"schema": self.schema, **panels, **colours})

    @classmethod
    def of(cls, bundle: Bundle) -> DriftReference | None:
        """That of a bundle; None where it has none, as earlier versions wrote none.

        Raises:
            ContractError: it is malformed, or not of the bundle's classes.
        """
        if FILE not in bundle:
            return None
        data = bundle.read_json(FILE, schema=cls.schema)
        try:
            images = Panel.from_json(data["images"])
            answers, colours = (held and Panel.from_json(held) for held in (data["answers"], data.get("colours")))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ContractError(f"{FILE} is malformed: {error}") from error
        classes = len(bundle.contract.classes)
        if any(len(panel.scale.means) != classes for panel in (images, answers, colours) if panel):
            raise ContractError(f"{FILE} is not of the contract's {classes} classes")
        return cls(images, answers, colours)
