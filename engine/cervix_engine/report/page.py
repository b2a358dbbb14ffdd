"""The report as one HTML file: no network, no script from elsewhere, every name from the table escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from cervix_engine.contract import Category, ModelContract
from cervix_engine.errors import OutputError
from cervix_engine.extras import require_installed
from cervix_engine.files import atomic_path, output_errors
from cervix_engine.outputs.places import require_free
from cervix_engine.report.drift_section import drift_section
from cervix_engine.report.facts import Facts
from cervix_engine.report.findings import BINS, Findings, Pick
from cervix_engine.report.pictures import Thumbnail, thumbnails
from cervix_engine.report.reasons import Reasons
from cervix_engine.report.slide_map import SlideMap, draw_map
from cervix_engine.table.geojson import COLOURS
from cervix_engine.table.summary import Share, SlideSummary
from cervix_engine.tiles.sources.source import TileSource
from cervix_engine.version import __version__

# What bounds the file, however large the table: about 12 kB a picture, 2 kB a similar tile's, 1 kB a slide, 5 kB a map.
MAX_SLIDES = 1000
MAX_MAPS = 60
MAX_GALLERY = 200
MAX_BYTES = 20 * 10**6


@dataclass(frozen=True, slots=True)
class ClassBar:
    """One class of the distribution."""

    name: str
    display_name: str
    category: str
    count: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Card:
    """One tile of the gallery."""

    pick: Pick
    picture: Thumbnail


def write_page(
    findings: Findings,
    facts: Facts,
    out: Path,
    *,
    tiles: TileSource | None,
    contract: ModelContract,
    reasons: Reasons | None = None,
    overwrite: bool = False,
) -> None:
    """Render the report and write it, atomically.

    Args:
        findings: what `gather` made of the table.
        facts: of run and model.
        out: where the HTML goes.
        tiles: where the table's tiles come from; None leaves the gallery without pictures.
        contract: how tiles are decoded, and what the classes are called.
        reasons: adds to each picture what is shown beside it.
        overwrite: whether a file that lies there may be replaced.

    Raises:
        OutputExistsError, OutputError: `out` is there already, or cannot be written.
    """
    require_free(out, overwrite=overwrite)
    # Names of files, the table's own too, may hold bytes that are not UTF-8.
    page = render(findings, facts, tiles=tiles, contract=contract, reasons=reasons).encode("utf-8", "backslashreplace")
    if len(page) > MAX_BYTES:
        raise OutputError(f"the report would have {len(page):,} bytes, limit {MAX_BYTES:,}: lower --top")
    with output_errors(f"cannot write {out}"), atomic_path(out) as temporary:
        temporary.write_bytes(page)


def render(
    findings: Findings,
    facts: Facts,
    *,
    tiles: TileSource | None,
    contract: ModelContract,
    reasons: Reasons | None = None,
) -> str:
    """The page's text."""
    picks = (findings.suspicious[:MAX_GALLERY], findings.uncertain[:MAX_GALLERY])
    wanted = {pick.row.path for pick in chain(*picks)}
    pictures = thumbnails(tiles, wanted, contract=contract, reasons=reasons) if tiles else {}
    slides = _notable(findings)
    style, script = _resource("style.css"), _resource("script.js")
    return str(
        _template().render(
            version=__version__,
            table=findings.table.path.name,
            findings=findings,
            facts=facts,
            classes=_class_bars(findings, contract),
            names={item.name: item.display_name for item in contract.classes},
            histogram=_bars(findings),
            axis_top=_axis_top(findings),
            slides=slides,
            maps=_maps(findings, slides),
            suspicious=_cards(picks[0], pictures),
            uncertain=_cards(picks[1], pictures),
            has_pictures=tiles is not None,
            has_maps=reasons is not None and reasons.heatmaps,
            training=reasons.training if reasons else None,
            drift=drift_section(facts.drift) if facts.drift else "",
            style=style,
            script=script,
            # The page may load nothing and run nothing but these two texts.
            style_hash=_csp_hash(style),
            script_hash=_csp_hash(script),
        )
    )


def check_page() -> None:
    """Raises BackendUnavailableError where no page can be made."""
    require_installed("report", "jinja2", work="a page")


def _template() -> Any:
    check_page()
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource("template.html.j2"))


def _resource(name: str) -> str:
    return (resources.files("cervix_engine.report") / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _notable(findings: Findings) -> list[SlideSummary]:
    # By the interval's lower end: two tiles of which both look abnormal are less remarkable than 180 of 200.
    ranked = sorted(findings.slides, key=lambda slide: (-slide.abnormal.interval[0], -slide.mean_abnormal))
    return ranked[:MAX_SLIDES]


def _class_bars(findings: Findings, contract: ModelContract) -> list[ClassBar]:
    display = {item.name: item.display_name for item in contract.classes}
    bars = []
    for name, category, count in zip(findings.table.class_names, findings.categories, findings.classes, strict=True):
        share = Share(count, findings.predicted)
        bars.append(ClassBar(name, display.get(name, name), category, count, share.value, *share.interval))
    return bars


Bar = tuple[str, int, list[tuple[Category, float, float]]]


def _bars(findings: Findings) -> list[Bar]:
    """(label, count, stacked parts as (category, top, height) in per cent of `_axis_top`) of each bin."""
    tallest = _axis_top(findings)
    bars = []
    for at, counts in enumerate(findings.histogram):
        parts, top = [], 100.0
        for category in COLOURS:
            height = 100 * counts[category] / tallest
            top -= height
            parts.append((category, top, height))
        bars.append((f"{at / BINS:.2f} to {(at + 1) / BINS:.2f}", counts.total(), parts))
    return bars


def _axis_top(findings: Findings) -> int:
    """A round and even number that no bin is above."""
    tallest = max((bin_.total() for bin_ in findings.histogram), default=0)
    power = 1
    while 10 * power < tallest:
        power *= 10
    return next(step * power for step in (2, 4, 6, 8, 10) if step * power >= tallest)


def _maps(findings: Findings, slides: list[SlideSummary]) -> list[SlideMap]:
    known = [slide.slide_id for slide in slides if slide.slide_id in findings.points]
    # Where names place tiles on other slides than the table's column, all of those are shown.
    chosen = known or sorted(findings.points)
    return [draw_map(slide_id, findings.points[slide_id]) for slide_id in chosen[:MAX_MAPS]]


def _cards(picks: list[Pick], pictures: Mapping[str, Thumbnail]) -> list[Card]:
    without = Thumbnail(None, "no --tiles given")
    return [Card(pick, pictures.get(pick.row.path, without)) for pick in picks]
