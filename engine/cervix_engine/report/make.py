"""From a finished table to everything that was asked of it, reading it once for page and summary."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import CervixError, OutputError, UsageError
from cervix_engine.outputs.places import local_file, require_free, require_free_folder
from cervix_engine.report.facts import drifted_slides, load_facts
from cervix_engine.report.feature_network import check_feature_network
from cervix_engine.report.findings import Findings, gather
from cervix_engine.report.page import check_page, write_page
from cervix_engine.report.reasons import Reasons
from cervix_engine.report.similar import carried_tiles
from cervix_engine.run.assembly.beside import files_of_table, record_of, source_of
from cervix_engine.table.coordinates import FOLDER, NAMES, Locating
from cervix_engine.table.geojson import SUFFIX, write_geojson
from cervix_engine.table.locations import locating_for_run, locating_for_table
from cervix_engine.table.reader import Table
from cervix_engine.table.summary import write_summary


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """What was asked: at least one of `out`, `summary` and `geojson`."""

    table: Path
    out: Path | None = None
    tiles: str | os.PathLike[str] | None = None
    summary: Path | None = None
    geojson: Path | None = None
    coords: str | None = None
    model: Path | None = None
    top: int = 48
    heatmaps: bool = False
    similar: bool = False
    overwrite: bool = False

    @property
    def reasons(self) -> dict[str, str]:
        """What is asked for beside pictures: option to what it needs libraries for."""
        asked = {"--heatmaps": (self.heatmaps, "a heat map"), "--similar": (self.similar, "a search for similar tiles")}
        return {option: work for option, (wanted, work) in asked.items() if wanted}


def make_report(config: ReportConfig) -> Findings:
    """Write what was asked; where one of them fails, the others are made all the same.

    Raises:
        CervixError: see `errors.py`; what it speaks of has not appeared.
    """
    check_config(config)
    table = Table.open(config.table)
    bundle = Bundle.open(config.model) if config.model else None
    if bundle and config.similar:
        carried_tiles(bundle)
    categories = table.categories(bundle.contract if bundle else None)
    locator = locating_for_table(table, config.coords, names_slides=_names_say_slides(config.table))
    findings = gather(
        table,
        categories=categories,
        locator=locator,
        top=config.top if config.out else 0,
        locate_failed=_locating_failed(config, locator),
    )

    findings.slides.drifted = drifted_slides(config.table, tiles=findings.tiles, failed=findings.failed)

    def page(path: Path) -> None:
        facts = load_facts(config.table, bundle=bundle, tiles=findings.tiles, failed=findings.failed)
        # Only display names and the EXIF rule are taken from it, and SIPaKMeD's are the defaults of both.
        contract = bundle.contract if bundle else ModelContract(SIPAKMED_CLASSES)
        tiles = source_of(config.table, config.tiles) if config.tiles else None
        reasons = None
        if bundle and config.reasons:
            reasons = Reasons(bundle, heatmaps=config.heatmaps, similar=config.similar)
        write_page(findings, facts, path, tiles=tiles, contract=contract, reasons=reasons, overwrite=config.overwrite)

    _make_each(
        (config.summary, lambda path: write_summary(path, findings.slides)),
        (config.geojson, lambda path: write_geojson(table, path, locator=locator, overwrite=config.overwrite)),
        (config.out, page),
    )
    return findings


def _make_each(*products: tuple[Path | None, Callable[[Path], object]]) -> None:
    """Make each product that has a path, whatever becomes of the others; raise what went wrong."""
    failures: list[CervixError] = []
    for path, make in products:
        try:
            if path:
                make(path)
        except CervixError as error:
            failures.append(error)
    if len(failures) > 1:
        raise OutputError("; ".join(map(str, failures))) from failures[0]
    if failures:
        raise failures[0]


def _names_say_slides(table: Path) -> bool:
    """Whether slides were not named to the run that made a table."""
    try:
        return record_of(table).identity.slide in (None, FOLDER)
    except OutputError:
        return True


def _locating_failed(config: ReportConfig, locator: Locating) -> Locating:
    """What knows where failed tiles lie, of which the table says nothing: what its run was told, else the names."""
    if config.coords is not None:
        return locator
    try:
        told = record_of(config.table).identity
        return locating_for_run(told.coords, slide=told.slide) if told.coords not in (None, NAMES) else locator
    except (OutputError, UsageError):
        return locator


def check_config(config: ReportConfig) -> None:
    """Refuse before a long table is read, or made, what would be refused after.

    Raises:
        UsageError, OutputError: what is asked cannot be made.
    """
    if not (config.out or config.summary or config.geojson):
        raise UsageError("nothing to make: name --out, --summary or --geojson")
    if config.tiles is not None:
        source_of(config.table, config.tiles).check()
    targets = [path for path in (config.out, config.summary, config.geojson) if path]
    if len({os.path.realpath(path) for path in (*targets, config.table)}) <= len(targets):
        raise UsageError("table, --out, --summary and --geojson must all be different")
    if config.out:
        check_page()
    for option, work in config.reasons.items():
        if not (config.out and config.tiles and config.model):
            raise UsageError(f"{option} needs --out, the tiles (--tiles) and the bundle that made the table (--model)")
        check_feature_network(work)
    _check_targets(config, targets)


def _check_targets(config: ReportConfig, targets: list[Path]) -> None:
    """Refuse to write over anything but what an earlier report wrote there, and over nothing that is read."""
    tiles = local_file(config.tiles)
    inputs = (*files_of_table(config.table), config.model, tiles, local_file(config.coords))
    source = None if config.tiles is None else source_of(config.table, config.tiles)
    for path in targets:
        if source and source.holds(path):
            raise UsageError(f"{path} would lie among the tiles: name a place outside {config.tiles}")
        if path == config.geojson:
            require_free_folder(path, SUFFIX, overwrite=config.overwrite, inputs=inputs)
        else:
            require_free(path, overwrite=config.overwrite, inputs=inputs)
