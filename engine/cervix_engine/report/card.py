"""A bundle's model card: what it is, what it learnt from, how well it does, how it decides, and where that ends.

All is taken from the bundle's own files, so a card says no more than these do; what they leave out is said to be
unknown. Source: Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cervix_engine.backends.survey import certificates
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.imported import RECORD_FILE, RECORD_SCHEMA, is_imported
from cervix_engine.drift.reference import DriftReference
from cervix_engine.errors import ContractError
from cervix_engine.report.card_text import Block, Bullets, CardTable, Section, as_markdown
from cervix_engine.words import agreeing, counted

CARD_FILE = "MODEL_CARD.md"

# File in the bundle -> its schema.
_FILES = {
    "training/training.json": "cervix/training/1",
    "training/metrics.json": "cervix/metrics/1",
    "training/copies.json": "cervix/copies/1",
    "training/folds.json": "cervix/folds/1",
    "training/operating_point.json": "cervix/operating-point/1",
    RECORD_FILE: RECORD_SCHEMA,
}
_MEASURED_ON = {
    "test": "the test split, which had no part in training",
    "folds": "all of them, each answered out of fold by a model that learnt from other groups",
}
_UNKNOWN = "Not known: the bundle does not say."


def card_sections(bundle: Bundle) -> list[Section]:
    """All that a card says of a bundle.

    Raises:
        ContractError: a file of the bundle is malformed.
    """
    known = {name: bundle.read_json(name, schema=schema) for name, schema in _FILES.items() if name in bundle}
    writers = (_what, _source, _data, _quality, _decisions, _validity, _forms, _limits)
    try:
        return [writer(bundle, known) for writer in writers]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContractError(f"a file of the bundle is malformed: {error!r}") from error


def card_title(bundle: Bundle) -> str:
    return f"Model card: {bundle.root.resolve().name}"


def seal_with_card(root: Path) -> Bundle:
    """Write `MODEL_CARD.md` into a bundle's folder, and seal it."""
    (root / CARD_FILE).write_text(as_markdown("Model card", card_sections(seal(root))), encoding="utf-8")
    return seal(root)


Known = Mapping[str, Mapping[str, Any]]


def _what(bundle: Bundle, _known: Known) -> Section:
    contract = bundle.contract
    height, width = contract.input_size
    rows = [(item.name, item.display_name, item.category) for item in contract.classes]
    return Section(
        "What it is",
        [
            f"A classifier of single Pap-smear tiles into {len(rows)} classes. It takes RGB tiles, resized to {height} "
            f"× {width} pixels by the engine, and gives a probability for each class.",
            CardTable(("class", "name", "category"), rows),
        ],
    )


def _source(bundle: Bundle, known: Known) -> Section:
    if is_imported(bundle):
        return _imported(known[RECORD_FILE])
    training = known.get("training/training.json")
    if training is None:
        return Section("Where it comes from", [_UNKNOWN])
    recipe, run = training["recipe"], training.get("run") or {}
    rows = [(key.replace("_", " "), _value(value)) for key, value in recipe.items()]
    when = f" on {run['ended_at'][:10]}" if run.get("ended_at") else ""
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    return Section(
        "Where it comes from",
        [f"Trained with cervix-train{when}, by this recipe.", CardTable(("setting", "value"), rows), f"By {versions}."],
    )


def _imported(record: Mapping[str, Any]) -> Section:
    stated, source = record["stated"], record["source"]
    rows = [(key.replace("_", " "), _value(value)) for key, value in stated["input"].items()]
    checked = []
    if expected := record["expected"]:
        checked.append(
            f"It answers {counted(expected['tiles'], 'tile')} as its own pipeline does, up to "
            f"{expected['max_absdiff']:.2g} off."
        )
    checked += [f"Not checked: {words}." for words in record["not_checked"]]
    return Section(
        "Where it comes from",
        [
            f"Imported from {source['file']} (SHA-256 {source['sha256'][:16]}…). Who trained it, how and when is not "
            "known.",
            "Between raw pixels and that file lies what was stated:",
            CardTable(("stated", "value"), [*rows, ("output", stated["output"])]),
            Bullets(checked),
        ],
    )


def _data(bundle: Bundle, known: Known) -> Section:
    training = known.get("training/training.json")
    if training is None:
        words = "Not known: which tiles it learnt from, of which laboratories, and who labelled them."
        return Section("What it learnt from", [words])
    distribution = training["distribution"]
    names = {item.name: item.display_name for item in bundle.contract.classes}
    rows = [
        (names.get(item["name"], item["name"]), item["train"], item["val"], item["test"])
        for item in distribution["classes"]
    ]
    totals = ("all", *(sum(row[column] for row in rows) for column in (1, 2, 3)))
    blocks: list[Block] = [CardTable(("class", "train", "val", "test"), [*rows, totals])]
    if training["left_out"]:
        left_out, were = counted(training["left_out"], "tile"), agreeing(training["left_out"], "was", "were")
        blocks.append(f"{left_out} could not be decoded and {were} left out.")
    if copies := known.get("training/copies.json"):
        across, labelled_twice = len(copies["across_splits"]), len(copies["two_labels"])
        blocks.append(
            f"Looked for copies: {counted(across, 'pair of tiles shows', 'pairs of tiles show')} one cell on both "
            f"sides of the split, {counted(labelled_twice, 'shows', 'show')} one under two labels."
        )
    return Section("What it learnt from", blocks)


def _quality(bundle: Bundle, known: Known) -> Section:
    title, metrics = "How well it does", known.get("training/metrics.json")
    if metrics is None:
        return Section(title, _labels(known.get(RECORD_FILE)))
    groups = f" of {counted(metrics['groups'], 'separate group')}" if metrics.get("groups") else ""
    measured = _MEASURED_ON.get(metrics["split"], metrics["split"])
    blocks: list[Block] = [
        f"Measured on {counted(metrics['tiles'], 'tile')}{groups}: {measured}.",
        CardTable(("figure", "value", "95 % interval, by groups"), _figures(metrics)),
        CardTable(("class", "tiles", "precision", "recall", "95 %"), _classes(bundle, metrics)),
        f"Expected calibration error {metrics['calibration']['ece']:.4f}.",
    ]
    if folds := known.get("training/folds.json"):
        blocks.append("No tile was held back from this model itself: the figures are of its recipe.")
        blocks.append(Bullets([f"Caveat: {words}." for words in folds["caveats"]]))
    return Section(title, blocks)


def _figures(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = [
        ("accuracy", *_figure(metrics["accuracy"], metrics["accuracy_interval"])),
        ("macro F1", *_figure(metrics["macro"]["f1"], metrics["macro_f1_interval"])),
    ]
    abnormal = metrics.get("abnormal_vs_rest") or {}
    named = (("sensitivity", "sensitivity, abnormal"), ("specificity", "specificity, abnormal"), ("auroc", "AUROC"))
    rows += [(words, *_figure(abnormal[key], abnormal[f"{key}_interval"])) for key, words in named if key in abnormal]
    return rows


def _classes(bundle: Bundle, metrics: Mapping[str, Any]) -> list[tuple[object, ...]]:
    names = {item.name: item.display_name for item in bundle.contract.classes}
    return [
        (
            names.get(item["name"], item["name"]),
            item["tiles"],
            f"{item['precision']:.3f}",
            *_figure(item["recall"], item["recall_interval"]),
        )
        for item in metrics["per_class"]
    ]


def _labels(record: Mapping[str, Any] | None) -> list[Block]:
    labels = (record or {}).get("labels")
    if not labels:
        return ["Not known: no labelled tiles were given."]
    low, high = labels["accuracy_interval"]
    return [
        f"{labels['right']} of {labels['tiles']} labelled golden tiles are answered right: {labels['accuracy']:.1%} "
        f"({low:.1%} to {high:.1%}, 95 %, taking tiles as independent). Whether it learnt from them is not known."
    ]


def _decisions(bundle: Bundle, known: Known) -> Section:
    title, point = "How it decides", bundle.contract.operating_point
    if point is None:
        return Section(title, ["No operating point was chosen: a tile's category is that of its most probable class."])
    blocks: list[Block] = [
        f"A tile is called abnormal where the abnormal classes' probabilities add up to {point.abnormal_at:g} or more. "
        f"For a person to review: {point.review_words}."
    ]
    worth = known.get("training/operating_point.json")
    rows = []
    for split in ("val", "test"):
        measured = (worth or {}).get(split)
        if measured:
            chosen = measured["thresholds"][0]
            figures = (_with_interval(chosen, key) for key in ("sensitivity", "specificity", "review"))
            rows.append((split, measured["tiles"], *figures))
    if rows:
        blocks.append(CardTable(("split", "tiles", "sensitivity", "specificity", "for review"), rows))
    return Section(title, blocks)


def _validity(bundle: Bundle, _known: Known) -> Section:
    blocks: list[Block] = []
    if statistics := bundle.contract.tile_statistics:
        rows = [(item.name, f"{item.low:.1f}", f"{item.median:.1f}", f"{item.high:.1f}") for item in statistics]
        blocks.append("Colour and size of the training tiles; cervix-batch --quality flags tiles outside.")
        blocks.append(CardTable(("measure", "0.5 %", "median", "99.5 %"), rows))
    if drift := DriftReference.of(bundle):
        panel = drift.images
        measures = ", ".join(name.replace("_", " ") for name in panel.scale.measures)
        blocks.append(
            f"A run is compared as a whole with {counted(panel.tiles, 'tile')} of {counted(panel.groups, 'group')}, "
            f"from {counted(panel.fewest_tiles, 'tile')} on, by {len(panel.scale.measures)} measures: {measures}."
        )
    return Section(
        "For which tiles", blocks or ["Not known: the bundle holds no statistics of the tiles it learnt from."]
    )


def _forms(bundle: Bundle, _known: Known) -> Section:
    found = sorted(certificates(bundle), key=lambda item: (item.file, item.backend, item.precision))
    if not found:
        return Section("Certificates", ["None yet: cervix-export or cervix-parity --certify makes them."])
    rows = [
        (
            item.file,
            f"{item.backend} {item.backend_version}",
            item.precision,
            item.device_class,
            f"{item.parity.max_absdiff:.1e}",
            f"{item.parity.top1_agreement:.2%} of {item.parity.tiles}",
            "yes" if item.passed else "NO",
        )
        for item in found
    ]
    heads = ("file", "runtime", "precision", "device", "largest difference", "equal classes", "passed")
    return Section("Certificates", [f"Compared with {found[0].reference}.", CardTable(heads, rows)])


def _limits(_bundle: Bundle, known: Known) -> Section:
    items = [
        "Research use only: not a diagnostic device, and nothing that it says of a tile is a finding.",
        "It knows its classes alone: what is none of them (debris, blood, another organ) is called one of them too.",
        "It judges single tiles. What a slide or a patient has does not follow from them.",
    ]
    if "training/metrics.json" in known:
        items.append(
            "The figures are of tiles of the same data set: another laboratory's stain, scanner or preparation may do "
            "worse."
        )
    if "training/metrics.json" in known and not known["training/metrics.json"].get("groups"):
        items.append("Which tiles belong together is not known, so test tiles may resemble training tiles.")
    items.append("Not known: age, origin and history of the patients, and how figures differ between them.")
    return Section("Limits", [Bullets(items)])


def _figure(value: float, interval: Sequence[float]) -> tuple[str, str]:
    return f"{value:.3f}", f"{interval[0]:.3f} to {interval[1]:.3f}"


def _with_interval(worth: Mapping[str, Any], key: str) -> str:
    value, interval = _figure(worth[key], worth[f"{key}_interval"])
    return f"{value} ({interval})"


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return (" × " if all(type(item) is int for item in value) else ", ").join(map(str, value))
    return str(value)
