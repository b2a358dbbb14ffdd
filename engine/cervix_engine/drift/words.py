"""What a drift finding says to a person."""

from __future__ import annotations

from collections.abc import Iterator

from cervix_engine.drift.watch import Distance, DriftFinding
from cervix_engine.words import agreeing, counted

NAMED_SLIDES = 3
# Beyond it, how rare a distance is rests on no more than the shape of the tail.
_RAREST = 10_000

UNWATCHED = "not watched: the model's bundle keeps nothing that tiles could be compared with"
TOO_FEW = "too few tiles were measured to say anything"


def drift_lines(finding: DriftFinding) -> Iterator[str]:
    """A finding in a few lines, each a warning where it is one."""
    run = finding.run
    if run is None:
        yield f"drift: {TOO_FEW}"
        return
    if run.drifted:
        together = f"the {run.tiles} measured tiles, taken together, are unlike those that the model learned from"
        yield f"warning: drift: {together}: {far(run)}"
    if drifted := finding.drifted_slides:
        named = "; ".join(f"{name}, {far(finding.slides[name])}" for name in drifted[:NAMED_SLIDES])
        more = f"; and {len(drifted) - NAMED_SLIDES} more" if len(drifted) > NAMED_SLIDES else ""
        share, are = f"{len(drifted)} of {counted(finding.judged, 'slide')}", agreeing(len(drifted), "is", "are")
        yield f"warning: drift: {share} {are} unlike the training tiles: {named}{more}"
    if not finding.drifted:
        yield f"drift: none in {run.tiles} measured tiles, which are {distance_words(run)}"


def drift_word(finding: DriftFinding | None) -> str:
    """A finding in three words."""
    if finding is None or finding.run is None:
        return "drift not watched"
    return "drift found" if finding.drifted else "no drift found"


def far(distance: Distance) -> str:
    """How far, how rare that is, and what has moved."""
    chance = f"by chance {rarity(distance.share)} samples of its own data would be as far"
    return f"{distance_words(distance)}, {chance}; {moved_words(distance)}"


def distance_words(distance: Distance) -> str:
    """In units of the limit."""
    return f"{distance.distance:.1f} times the limit away"


def rarity(share: float) -> str:
    """How many samples of the training data would be as far off, such as `1 in 4,000`."""
    if share >= 0.01:
        return f"{100 * share:.0f} in 100"
    if share > 1 / _RAREST:
        digits = len(str(int(1 / share)))
        return f"1 in {round(1 / share, 1 - digits):,.0f}"
    return f"fewer than 1 in {_RAREST:,}"


def moved_words(distance: Distance) -> str:
    """Which measures have moved, and by how many deviations of tiles."""
    if not distance.moved:
        return "no measure by itself, but all together"
    return "moved: " + ", ".join(moved.words for moved in distance.moved)
