"""False alarms are as rare as is said, what has moved is found and named, and sums do not depend on how they came."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.drift.calibrate import enough, make_panel
from cervix_engine.drift.measures import IMAGE, PIXELS
from cervix_engine.drift.reference import DriftReference, Panel
from cervix_engine.drift.watch import DriftFinding, DriftWatch, MeasuredTile
from cervix_engine.drift.words import drift_lines
from cervix_engine.errors import ContractError
from engine.drift.watched import reference, watched_bundle
from engine.run.support import make_bundle

Floats = npt.NDArray[np.float64]
Drawn = tuple[Floats, npt.NDArray[np.intp], list[str]]
NAMES = [measure.name for measure in IMAGE[:5]]
CLASSES = 3


def draw(groups: int, *, rng: np.random.Generator, per_group: int = 5, classes: int = CLASSES) -> Drawn:
    """Tiles of groups that resemble each other as much as they differ, of classes that lie far apart."""
    group = np.repeat(np.arange(groups), per_group)
    values = 10 * (rng.normal(size=(groups, len(NAMES)))[group] + rng.normal(size=(len(group), len(NAMES))))
    classes_of = rng.integers(0, classes, groups)[group]
    return values + 500 * classes_of[:, None], classes_of, [f"group {number}" for number in group]


@pytest.fixture(scope="module")
def panel() -> Panel:
    values, classes, groups = draw(200, rng=np.random.default_rng(0))
    return make_panel(NAMES, values, classes, groups, class_count=CLASSES)


def alarms(panel: Panel, *, shift: float = 0.0, classes: int = CLASSES, groups: int = 40) -> float:
    """The share of 300 fresh runs that lie beyond the limit; `shift` is in deviations of tiles, of one measure."""
    rng, beyond = np.random.default_rng(1), 0
    for _ in range(300):
        values, classes_of, names = draw(groups, rng=rng, classes=classes)
        values[:, 1] += shift * 10 * 2**0.5
        beyond += panel.distance(panel.scale.scores(values, classes_of).mean(axis=0), len(names)) > 1
    return beyond / 300


@pytest.mark.parametrize("groups", [6, 40])
def test_false_alarms_are_as_rare_as_is_said(panel: Panel, groups: int) -> None:
    assert 0 < alarms(panel, groups=groups) < 0.09


def test_tiles_of_one_class_are_not_strange_for_that() -> None:
    """Here classes lie 35 deviations apart."""
    values, classes, groups = draw(1000, rng=np.random.default_rng(2))
    panel = make_panel(NAMES, values, classes, groups, class_count=CLASSES)
    assert alarms(panel, classes=1) < 0.09


def test_a_shift_of_one_measure_is_found(panel: Panel) -> None:
    assert alarms(panel, shift=0.8) > 0.95


def test_the_share_is_that_of_the_limits(panel: Panel) -> None:
    near, far = panel.limits[list(panel.sizes).index(100)]
    assert panel.share(1.0, 100) == pytest.approx(0.05)
    assert panel.share(far / near, 100) == pytest.approx(0.01)
    assert panel.share(0.1, 100) == 1
    assert panel.limit(0.05, 100) == 1
    assert panel.share(panel.limit(0.02, 100), 100) == pytest.approx(0.02)
    assert 0 < panel.share(3.0, 100) < 1e-4


def test_chance_does_not_end_at_the_largest_run_that_was_tried(panel: Panel) -> None:
    means = np.full(2 * len(NAMES), 0.2)
    assert panel.distance(means, 10**6) == pytest.approx(panel.distance(means, int(panel.sizes[-1])))
    assert panel.distance(means, 25) < panel.distance(means, 200)


def test_equal_tiles_make_a_panel_that_sees_others() -> None:
    """As where all tiles of a data set are of one size."""
    values = np.ones((100, 2))
    panel = make_panel(
        ["height", "width"], values, np.zeros(100, np.intp), [f"{n // 2}" for n in range(100)], class_count=1
    )
    wider = values + np.array([0, 0.4])
    scores = [panel.scale.scores(tiles, np.zeros(100, np.intp)).mean(axis=0) for tiles in (values, wider)]
    assert panel.distance(scores[0], 45) == 0
    assert panel.distance(scores[1], 45) > 3


def test_too_few_tiles_make_none() -> None:
    assert not enough(["a", "b"] * 100)
    assert not enough([f"{number}" for number in range(59)])
    assert enough([f"{number}" for number in range(60)])
    with pytest.raises(ValueError, match="too few for a panel"):
        make_panel(["height"], np.ones((9, 1)), np.zeros(9, np.intp), ["a"] * 9, class_count=1)


def test_a_known_change_is_found_where_measures_move_less_than_they_vary() -> None:
    """It moves two measures that vary together, against each other: no other axis tells so little."""
    rng, names = np.random.default_rng(4), NAMES[:3]

    def draw_pair(groups: int) -> Drawn:
        values, classes, named = draw(groups, rng=rng)
        values[:, 1] = values[:, 0] + 0.2 * (values[:, 1] - values[:, 0])
        return values[:, :3], classes, named

    def change(values: Floats) -> Floats:
        return np.asarray(values + np.array([-0.8, 0.8, 0.0]))

    values, classes, groups = draw_pair(200)
    changed = np.where(np.arange(len(values))[:, None] % 2 == 0, change(values), np.nan)
    panels = [
        make_panel(names, values, classes, groups, class_count=CLASSES, changed=tried)
        for tried in (None, {"hue_plus": changed})
    ]
    beyond = np.zeros((2, 2))
    for _ in range(100):
        tiles, of_classes, named = draw_pair(40)
        for row, seen in enumerate((tiles, change(tiles))):
            means = [panel.scale.scores(seen, of_classes).mean(axis=0) for panel in panels]
            beyond[row] += [panel.distance(m, len(named)) > 1 for panel, m in zip(panels, means, strict=True)]
    assert (beyond[0] < 12).all(), "false alarms"
    assert beyond[1, 1] > beyond[1, 0] + 15
    assert beyond[1, 1] > 75


# ---- a run


def tiles_of(slide: str, count: int, *, rng: np.random.Generator, darker: float = 0.0) -> list[MeasuredTile]:
    """Tiles as the tiny bundle's own, or darker by so many deviations."""
    colours = reference().colours
    assert colours is not None
    scale = colours.scale
    values = scale.means[2] + scale.deviations[2] * rng.normal(size=(count, len(PIXELS))) * 0.3
    values[:, 0] -= darker * scale.deviations[2, 0]
    answers = reference().answers
    assert answers is not None
    return [MeasuredTile(slide, tuple(row), (0.05, 0.15, 0.7, 0.05, 0.05)) for row in values.tolist()]


@pytest.fixture(scope="module")
def watch() -> DriftWatch:
    images = reference().images
    return DriftWatch(DriftReference(images, None), 1)


def test_the_slide_that_is_strange_is_named(watch: DriftWatch) -> None:
    rng = np.random.default_rng(0)
    slides = [tiles_of(f"slide {number}", 60, rng=rng, darker=3.0 * (number == 3)) for number in range(6)]
    finding = watch.finding([watch.sums([tile for slide in slides for tile in slide])])
    assert "slide 3" in finding.drifted_slides
    assert next(iter(finding.slides)) == "slide 3"
    assert finding.slides["slide 3"].moved[0].measure == "brightness"
    assert finding.slides["slide 3"].moved[0].shift < -2
    assert (finding.judged, finding.too_small) == (6, 0)
    text = "\n".join(drift_lines(finding))
    assert "slide 3" in text
    assert "darker (-" in text


def test_sums_are_the_same_in_whatever_portions(watch: DriftWatch) -> None:
    rng = np.random.default_rng(3)
    tiles = [tile for number in range(4) for tile in tiles_of(f"s{number}", 40, rng=rng)]
    whole = watch.finding([watch.sums(tiles)])
    order = rng.permutation(len(tiles))
    portions = [[tiles[at] for at in part] for part in np.array_split(order, 23)]
    assert watch.finding(json.loads(json.dumps([watch.sums(part) for part in portions]))) == whole
    assert whole.run is not None
    assert whole.run.tiles == 160


def test_beyond_the_limit_is_drift_whichever_panel_tells_it() -> None:
    """All tiles are of one slide, so the run has all of the 5 %."""
    held, rng = reference(), np.random.default_rng(6)
    watch = DriftWatch(DriftReference(held.images, None, held.colours), 1)
    runs = [tiles_of("one", 60, rng=rng, darker=darker) for darker in np.linspace(0, 2, 30)]
    found = [watch.finding([watch.sums(tiles)]).run for tiles in runs]
    assert all(run and run.drifted == (run.distance > 1) == (run.share < 0.05) for run in found)
    assert {run.drifted for run in found if run} == {True, False}


def test_too_few_tiles_say_nothing(watch: DriftWatch) -> None:
    few = watch.finding([watch.sums(tiles_of("one", 10, rng=np.random.default_rng(0))), {}])
    assert (few.run, few.slides, few.judged, few.too_small) == (None, {}, 0, 1)
    assert not few.drifted
    assert watch.finding([]).run is None
    assert list(drift_lines(few)) == ["drift: too few tiles were measured to say anything"]


def test_a_finding_survives_json(watch: DriftWatch) -> None:
    rng = np.random.default_rng(5)
    finding = watch.finding([watch.sums([*tiles_of("a", 60, rng=rng), *tiles_of("b", 50, rng=rng, darker=3)])])
    assert DriftFinding.from_json(json.loads(json.dumps(finding.to_json()))) == finding


# ---- the file


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return watched_bundle(tmp_path_factory.mktemp("bundle") / "watched")


def test_a_bundle_keeps_it_in_a_few_kilobytes(watched: Bundle, validate: Callable[[str, Any], None]) -> None:
    data = watched.read("drift.json")
    assert len(data) < 20_000
    validate("drift", json.loads(data))
    held = DriftReference.of(watched)
    assert held is not None
    assert held.images.scale.means == pytest.approx(reference().images.scale.means, rel=1e-5)
    assert held.answers is not None
    assert held.colours is not None
    assert held.colours.changes == ("hue_plus", "hue_minus")


def test_a_bundle_of_version_0_2_is_watched_by_what_it_has(watched: Bundle, tmp_path: Path) -> None:
    make_bundle(tmp_path / "older")
    data = json.loads(watched.read("drift.json"))
    del data["colours"]
    (tmp_path / "older" / "drift.json").write_text(json.dumps(data))
    held = DriftReference.of(seal(tmp_path / "older"))
    assert held is not None
    assert held.colours is None
    watch, rng = DriftWatch(held, 1), np.random.default_rng(0)
    usual, darker = (tiles_of("one", 60, rng=rng, darker=far) for far in (0.0, 3.0))
    assert watch.finding([watch.sums(darker)]).drifted
    assert len(watch.sums(usual)["one"]) == 1 + 2 * (len(IMAGE) + 2)


def test_an_older_bundle_has_none(bundle: Bundle) -> None:
    assert DriftReference.of(bundle) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["images"].pop("means"), "malformed"),
        (lambda data: data["images"].update(axes=[[1.0]]), "axes"),
        (lambda data: data["images"]["limits"].pop(), "limits"),
        (lambda data: data["colours"].pop("changes"), "axes"),
        (lambda data: data["colours"].update(changes=["smell", "hue_minus"]), "unknown measures"),
        (lambda data: data["images"]["measures"].__setitem__(0, "smell"), "unknown measures"),
        (lambda data: data["images"]["deviations"][0].__setitem__(0, 0), "positive"),
        (lambda data: data["images"]["sizes"].reverse(), "ascending"),
        (lambda data: [data["images"][key].pop() for key in ("means", "deviations")], "5 classes"),
    ],
)
def test_what_is_broken_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, watched: Bundle, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "broken")
    data = copy.deepcopy(json.loads(watched.read("drift.json")))
    change(data)
    (tmp_path / "broken" / "drift.json").write_text(json.dumps(data))
    with pytest.raises(ContractError, match=message):
        DriftReference.of(seal(tmp_path / "broken"))
