"""Whether drift is seen where it is and not where it is not, and what watching costs.

    python -m benchmarks.training.drift MANIFEST --model BUNDLE --json drift.json

Alarms: the reference is made of the manifest's training and validation tiles, as `cervix-train` makes it. Runs of
`--tiles` tiles are drawn of whole groups of the test tiles, as they are and altered, with the bundle's own answers; the
share of runs that raise an alarm. One test split is one draw of groups: so `--splits` more are drawn of all tiles, by
groups, each with a reference of its own (true classes for the network's, and so without its answers).

Cost: hard links to these tiles through decode workers, without a model, and so bound by decoding; with the reference in
the bundle and without, in turn.
"""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.common import json_option, publish
from benchmarks.stream.stream_overhead import linked
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.drift.calibrate import make_panel, make_pixel_panels
from cervix_engine.drift.changes import measure_changed, turned_hue
from cervix_engine.drift.measures import ANSWER, measure_answers, measure_image, step_of
from cervix_engine.drift.reference import DriftReference
from cervix_engine.drift.watch import DriftWatch, MeasuredTile
from cervix_engine.run.session import Session, SessionRequest, open_session
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.preprocess import decode, read_tile, resize_into
from cervix_engine.tiles.tile import Prediction
from cervix_engine.values import Pixels

Floats = npt.NDArray[np.float64]
ANSWER_NAMES = [measure.name for measure in ANSWER]
HELD_OUT = 0.15
BATCHES_A_SHARD = 128


@dataclass(frozen=True)
class Tiles:
    """Tiles of a data set: their files, classes, groups and splits, one each."""

    paths: tuple[Path, ...]
    labels: npt.NDArray[np.intp]
    groups: npt.NDArray[Any]
    splits: npt.NDArray[Any]

    @classmethod
    def read(cls, manifest: Path, contract: ModelContract) -> Tiles:
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        labels = [contract.class_names.index(row["label"]) for row in rows]
        columns = (np.array([row[name] for row in rows]) for name in ("group", "split"))
        return cls(tuple(manifest.parent / row["path"] for row in rows), np.array(labels), *columns)

    def of(self, *splits: str) -> Tiles:
        return self[np.isin(self.splits, splits)]

    def __getitem__(self, chosen: npt.NDArray[np.bool_]) -> Tiles:
        paths = tuple(self.paths[at] for at in np.flatnonzero(chosen))
        return Tiles(paths, self.labels[chosen], self.groups[chosen], self.splits[chosen])


# ---- what is done to tiles


def _blurred(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 2), np.uint8)


def _jpeg(pixels: Pixels) -> Pixels:
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 20])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


def _gamma(pixels: Pixels, gamma: float) -> Pixels:
    return np.asarray(cv2.LUT(pixels, np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)), np.uint8)


def _warmer(pixels: Pixels) -> Pixels:
    return np.asarray(np.rint(pixels * np.array([1.04, 1, 1 / 1.04])).clip(0, 255), np.uint8)


def _magnified(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.resize(pixels, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_LINEAR), np.uint8)


def _magnified_and_cut(pixels: Pixels) -> Pixels:
    large, (height, width) = _magnified(pixels), pixels.shape[:2]
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.ascontiguousarray(large[top : top + height, left : left + width])


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "held-out fields": lambda pixels: pixels,
    "blur of 2 px": _blurred,
    "JPEG quality 20": _jpeg,
    "hue +10 degrees": lambda pixels: turned_hue(pixels, 10),
    "gamma 1.4": lambda pixels: _gamma(pixels, 1.4),
    "1.5x magnification": _magnified,
    "1.5x magnification, tiles of the same size": _magnified_and_cut,
    # Smaller than what must be found.
    "hue +5 degrees": lambda pixels: turned_hue(pixels, 5),
    "gamma 1.15": lambda pixels: _gamma(pixels, 1.15),
    "4 % warmer": _warmer,
}


def _drawn_cells(count: int) -> Iterator[tuple[Pixels, str]]:
    """Cells of `cervix_train.synthetic`, two a field, with the names of their fields."""
    from cervix_engine.contract import SIPAKMED_CLASSES
    from cervix_train.synthetic.cells import draw_tile

    for index in range(count):
        label = SIPAKMED_CLASSES[index % len(SIPAKMED_CLASSES)].name
        field, cell = 1 + index // 2 // len(SIPAKMED_CLASSES), 1 + index // len(SIPAKMED_CLASSES) % 2
        yield draw_tile(label, field=field, cell=cell, seed=0), f"{label}/{field}"


# ---- alarms


def measured(tiles: Sequence[Pixels], contract: ModelContract) -> tuple[Floats, Pixels]:
    """Measures of decoded tiles, and what the network sees of them."""
    seen = np.empty((len(tiles), *contract.input_size, 3), np.uint8)
    values = []
    for pixels, out in zip(tiles, seen, strict=True):
        resize_into(out, pixels)
        values.append(measure_image(out, height=pixels.shape[0], width=pixels.shape[1]))
    return np.array(values), seen


def decoded(tiles: Tiles, contract: ModelContract) -> list[Pixels]:
    return [decode(read_tile(path), contract=contract) for path in tiles.paths]


def runs(groups: npt.NDArray[Any], tiles: int, count: int) -> Iterator[npt.NDArray[np.intp]]:
    """Positions of so many tiles, of whole groups in random order, so often."""
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(count):
        yield np.concatenate([members[at] for at in rng.permutation(len(members))])[:tiles]


def alarm_share(watch: DriftWatch, tiles: Sequence[MeasuredTile], drawn: Iterator[npt.NDArray[np.intp]]) -> float:
    findings = [watch.finding([watch.sums([tiles[at] for at in run])]) for run in drawn]
    return statistics.fmean(finding.drifted for finding in findings)


def as_measured(values: Floats, answers: npt.NDArray[Any]) -> list[MeasuredTile]:
    pairs = zip(values.tolist(), answers.tolist(), strict=True)
    return [MeasuredTile("one slide", tuple(row), tuple(given)) for row, given in pairs]


def reference_of(tiles: Tiles, session: Session) -> DriftReference:
    """As `cervix-train` makes it."""
    contract, learnt, val = session.contract, tiles.of("train", "val"), tiles.of("val")
    count = len(contract.classes)
    pixels = decoded(learnt, contract)
    values, _ = measured(pixels, contract)
    changed = measure_changed(pixels.__getitem__, len(pixels), contract=contract, seed=0)
    answers = session.infer(measured(decoded(val, contract), contract)[1])
    images, colours = make_pixel_panels(
        values, learnt.labels, learnt.groups.tolist(), changed=changed, class_count=count
    )
    told = measure_answers(answers)
    of_answers = make_panel(ANSWER_NAMES, told, answers.argmax(axis=1), val.groups.tolist(), class_count=count)
    return DriftReference(images, of_answers, colours)


def alarms(tiles: Tiles, session: Session, reference: DriftReference, *, size: int, count: int) -> dict[str, float]:
    """The share of runs with an alarm, by what was done to their tiles."""
    watch, contract, test = DriftWatch(reference, 1), session.contract, tiles.of("test")
    originals, found = decoded(test, contract), {}
    cells = list(_drawn_cells(len(test.paths)))
    sets = {name: ([change(pixels) for pixels in originals], test.groups) for name, change in CHANGES.items()}
    sets["drawn cells"] = ([pixels for pixels, _ in cells], np.array([field for _, field in cells]))
    for name, (pixels, groups) in sets.items():
        values, seen = measured(pixels, contract)
        found[name] = alarm_share(watch, as_measured(values, session.infer(seen)), runs(groups, size, count))
        click.echo(f"{name:<44} alarms in {found[name]:6.1%} of {count} runs of {size} tiles")
    return found


def split_alarms(tiles: Tiles, contract: ModelContract, *, size: int, count: int) -> float:
    """False alarms where the held-out groups are drawn anew for every reference, five runs each."""
    pixels = decoded(tiles, contract)
    values, _ = measured(pixels, contract)
    changed = measure_changed(pixels.__getitem__, len(pixels), contract=contract, seed=0)
    truth = np.eye(len(contract.classes))[tiles.labels] * 0.9
    names, shares = np.unique(tiles.groups), []
    for seed in range(count):
        out = np.random.default_rng(seed).permutation(names)[: round(HELD_OUT * len(names))]
        held = np.isin(tiles.groups, out)
        images, colours = make_pixel_panels(
            values[~held],
            tiles.labels[~held],
            tiles.groups[~held].tolist(),
            changed={name: rows[~held] for name, rows in changed.items()},
            class_count=truth.shape[1],
        )
        watch = DriftWatch(DriftReference(images, None, colours), 1)
        shares.append(alarm_share(watch, as_measured(values[held], truth[held]), runs(tiles.groups[held], size, 5)))
    share = statistics.fmean(shares)
    click.echo(f"false alarms over {count} other splits of the fields: {share:.1%}")
    return share


# ---- cost


def seconds_of(session: Session, listing: Listing, watch: DriftWatch, *, watched: bool) -> float:
    """What the stream over a listing takes, and what a run makes of its measured tiles once a shard."""
    from cervix_engine.run.stream.stream import batches_of

    began, step = time.perf_counter(), watch.step if watched else 0
    found: list[MeasuredTile] = []
    results = session.predict(batches_of(listing, session.batch_size), source=listing.source, measure_step=step)
    for number, result in enumerate(results, 1):
        found += [
            MeasuredTile("one slide", notes.measures, outcome.probabilities)
            for outcome, notes in zip(result.outcomes, result.notes, strict=True)
            if notes.measures and isinstance(outcome, Prediction)
        ]
        if number % BATCHES_A_SHARD == 0:
            watch.sums(found)
            found = []
    watch.sums(found)
    return time.perf_counter() - began


def cost(source: Path, reference: DriftReference, *, links: int, rounds: int) -> dict[str, Any]:
    """Times of runs bound by decoding, with watching and without."""
    from cervix_engine.backends.fake import FakeBackend
    from cervix_engine.contract import SIPAKMED_CLASSES
    from cervix_engine.machine import usable_cpus
    from cervix_engine.run.record import Provenance
    from cervix_engine.tiles.discover import discover
    from cervix_engine.tiles.sources.folder import Folder

    contract = ModelContract(SIPAKMED_CLASSES)
    with tempfile.TemporaryDirectory() as name:
        # Links need one file system.
        root = linked(shutil.copytree(source, Path(name) / "copy"), Path(name) / "tiles", count=links)
        (Path(name) / "spool").mkdir()
        listing = discover(Folder(root), spool=Path(name) / "spool")
        session = Session(contract, FakeBackend(), 32, usable_cpus(), Provenance("0" * 64, None, 0.0, 0.0), listing)
        watch = DriftWatch(reference, step_of(links))

        run = partial(seconds_of, session, listing, watch)
        run(watched=False)
        pairs = [
            {watched: run(watched=watched) for watched in (number % 2 == 0, number % 2 != 0)}
            for number in range(rounds)
        ]
    ratios = sorted(round(pair[True] / pair[False], 4) for pair in pairs)
    median = statistics.median(ratios)
    click.echo(f"{links} tiles, one in {watch.step} measured: {median:.3f} of the time without ({ratios})")
    return {"links": links, "step": watch.step, "ratio": median, "ratios": ratios}


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path, exists=True))
@click.option("--model", type=click.Path(path_type=Path), default="models/cervix", show_default=True)
@click.option("--runs", "count", default=200, show_default=True)
@click.option("--tiles", "size", default=200, show_default=True)
@click.option("--splits", default=40, show_default=True, help="Other splits of the groups.")
@click.option("--links", default=20_000, show_default=True, help="Tiles of the runs that are timed.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--drift", type=click.Path(path_type=Path), help="Write the reference into this folder.")
@json_option
def main(manifest: Path, model: Path, count: int, size: int, splits: int, links: int, rounds: int, **out: Path) -> None:
    with open_session(SessionRequest(Bundle.open(model))) as session:
        tiles = Tiles.read(manifest, session.contract)
        reference = reference_of(tiles, session)
        text = json.dumps(reference.images.to_json())
        click.echo(f"{reference.images.tiles} tiles of {reference.images.groups} groups, {len(text):,} bytes")
        if out["drift"]:
            reference.save(out["drift"])
        found = alarms(tiles, session, reference, size=size, count=count)
    others = split_alarms(tiles, session.contract, size=size, count=splits)
    timed = cost(manifest.parent, reference, links=links, rounds=rounds)
    publish(out["report"], {"benchmark": "drift", "alarms": found, "other_splits": others, "cost": timed})


if __name__ == "__main__":
    main()
