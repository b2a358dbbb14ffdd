"""From measured training and validation tiles to a panel: what is usual, and how far chance leads away from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cervix_engine.drift.measures import BY_NAME, IMAGE, PIXELS
from cervix_engine.drift.reference import FAR_SHARE, LIMIT_SHARE, Floats, Panel, Scale, root_mean_square

SIZES = (25, 50, 100, 200, 400, 800, 1600, 3200)
FEWEST_TILES, FEWEST_GROUPS = 60, 12
# So many ways to halve the groups, and runs drawn of each half: 1,000 in all, of which 10 lie beyond the far limit.
HALVES, RUNS = 40, 25
LARGEST_SHARE = 0.45
# A class of fewer tiles is taken as all of them together.
FEWEST_OF_A_CLASS = 8
# Of a tile's variance along an axis: below it, a direction is one in which measures never vary, and so tells nothing.
_LEAST_VARIANCE = 0.01
_LEAST_CHANCE = 0.02
# Measures that never vary leave nothing to divide by.
_RIDGE = 1e-4

Classes = npt.NDArray[np.intp]


def enough(groups: Sequence[str]) -> bool:
    """Whether so many tiles of these groups make a panel."""
    return len(groups) >= FEWEST_TILES and len(set(groups)) >= FEWEST_GROUPS


def make_panel(
    measures: Sequence[str],
    values: Floats,
    classes: Classes,
    groups: Sequence[str],
    *,
    class_count: int,
    changed: Mapping[str, Floats] | None = None,
    seed: int = 0,
) -> Panel:
    """The panel of N tiles.

    Args:
        measures: M names.
        values: `(N, M)`.
        classes: `(N,)`, positions among the model's classes.
        groups: N names of the fields, slides or patients that tiles come from.
        class_count: of the model.
        changed: by known change, `(N, M)` measures of the tiles after it, or NaN where it was not tried: makes a panel
            whose axes tell these changes apart; otherwise axes are those along which tiles vary independently.
        seed: of what is drawn.

    Raises:
        ValueError: there are not `enough`.
    """
    if not enough(groups):
        raise ValueError(f"{len(groups)} tiles of {len(set(groups))} groups: too few for a panel")
    # Half of the tiles stand for the reference, and a run of nearly all others would be the same one each time.
    sizes = [size for size in SIZES if size <= LARGEST_SHARE * len(groups)]
    names, numbers = np.unique(np.array(groups), return_inverse=True)
    changed = changed or {}
    tiles = _Tiles(tuple(measures), values, classes, numbers, class_count, tuple(changed.values()))
    rng = np.random.default_rng(seed)
    means = np.array([run for _ in range(HALVES) for run in _runs(tiles, sizes, rng=rng)])  # (runs, sizes, M + A)
    chance = np.sqrt((means**2).mean(axis=0)).clip(_LEAST_CHANCE)
    limits = _limits(root_mean_square((means / chance)[..., len(measures) :]))
    scale = tiles.scale(np.ones(len(groups), bool))
    counted = {"tiles": len(groups), "groups": len(names)}
    return Panel(scale, np.array(sizes, np.float64), chance, limits, **counted, changes=tuple(changed))


def _limits(distances: Floats) -> Floats:
    """The two `Panel.limits`, `(sizes, 2)`, of runs' distances `(runs, sizes)`."""
    limits = np.quantile(distances, [1 - LIMIT_SHARE, 1 - FAR_SHARE], axis=0).T
    limits[:, 0] = limits[:, 0].clip(_LEAST_CHANCE)
    limits[:, 1] = np.maximum(limits[:, 1], 1.02 * limits[:, 0])
    return np.asarray(limits, np.float64)


def make_pixel_panels(
    values: Floats,
    classes: Classes,
    groups: Sequence[str],
    *,
    changed: Mapping[str, Floats],
    class_count: int,
    seed: int = 0,
) -> tuple[Panel, Panel]:
    """The panels of images and of colours, of the measures `PIXELS` of N tiles; else as `make_panel`."""
    images = make_panel(
        [measure.name for measure in IMAGE],
        values[:, : len(IMAGE)],
        classes,
        groups,
        class_count=class_count,
        seed=seed,
    )
    names = [measure.name for measure in PIXELS]
    return images, make_panel(names, values, classes, groups, class_count=class_count, changed=changed, seed=seed)


@dataclass(frozen=True, slots=True)
class _Tiles:
    measures: tuple[str, ...]
    values: Floats
    classes: Classes
    groups: Classes
    class_count: int
    changed: tuple[Floats, ...]

    def scale(self, chosen: npt.NDArray[np.bool_]) -> Scale:
        """That of the chosen tiles."""
        least = np.array([BY_NAME[name].least_deviation for name in self.measures])
        means, deviations = (np.tile(row, (self.class_count, 1)) for row in _spread(self.values[chosen], least))
        for at in range(self.class_count):
            part = self.values[chosen & (self.classes == at)]
            if len(part) >= FEWEST_OF_A_CLASS:
                means[at], deviations[at] = _spread(part, least)
        plain = Scale(self.measures, means, deviations, np.empty((len(least), 0)))
        standard = plain.scores(self.values[chosen], self.classes[chosen])
        if not self.changed:
            return replace(plain, axes=_independent(standard))
        moves = [self._move(plain, values, chosen) for values in self.changed]
        return replace(plain, axes=_telling(standard, self.groups[chosen], np.array(moves).T))

    def _move(self, plain: Scale, changed: Floats, chosen: npt.NDArray[np.bool_]) -> Floats:
        """How far a change moves the standardised measures of those chosen tiles on which it was tried, on average."""
        tried = chosen & np.isfinite(changed).all(axis=1)
        before, after = (plain.scores(values[tried], self.classes[tried]) for values in (self.values, changed))
        return np.asarray((after - before).mean(axis=0), np.float64)


def _independent(standard: Floats) -> Floats:
    """The axes `(M, M)` along which standardised measures `(N, M)` vary independently."""
    variances, directions = np.linalg.eigh(np.cov(standard, rowvar=False))
    return np.asarray(directions / np.sqrt(variances.clip(_LEAST_VARIANCE)), np.float64)


def _telling(standard: Floats, groups: Classes, moves: Floats) -> Floats:
    """The axes `(M, A)` along which moves `(M, A)` stand out from what groups differ by: Fisher's discriminant."""
    centred = standard - standard.mean(axis=0)
    sums = np.zeros((groups.max() + 1, standard.shape[1]))
    np.add.at(sums, groups, centred)
    # Of the mean of N tiles, N times its variance: tiles of a group count as often as they resemble each other.
    between = sums.T @ sums / len(standard)
    ridge = _RIDGE * np.trace(between) / len(between) * np.eye(len(between))
    axes = np.linalg.solve(between + ridge, moves)
    return np.asarray(axes / np.maximum(centred.dot(axes).std(axis=0), _LEAST_CHANCE), np.float64)


def _spread(values: Floats, least: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation of tiles, of which the outermost hundredth on either side counts no further."""
    inner = values.clip(*np.quantile(values, [0.01, 0.99], axis=0))
    return inner.mean(axis=0), np.maximum(inner.std(axis=0), least)


def _runs(tiles: _Tiles, sizes: Sequence[int], *, rng: np.random.Generator) -> Iterator[Floats]:
    """Mean scores, `(sizes, M + A)`, of runs drawn of one half of the groups, where the other half is the reference."""
    groups = rng.permutation(tiles.groups.max() + 1)
    # So many groups that those left hold the largest run.
    order = np.cumsum(np.bincount(tiles.groups)[groups])
    held_out = groups[: int(np.searchsorted(order, len(tiles.groups) / 2)) + 1]
    chosen = ~np.isin(tiles.groups, held_out)
    scores = tiles.scale(chosen).scores(tiles.values, tiles.classes)
    members = {group: np.flatnonzero(tiles.groups == group) for group in held_out}
    for _ in range(RUNS):
        drawn = np.concatenate([members[group] for group in rng.permutation(held_out)])
        sums = scores[drawn].cumsum(axis=0)
        yield np.array([sums[size - 1] / size for size in sizes])
