"""What is asked of a run, and what can be refused before anything is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict

from cervix_engine.backends.device import ANY, Device
from cervix_engine.backends.selection import RequestedPrecision
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import ModelContract, OperatingPoint
from cervix_engine.errors import ContractError, OutputError, UsageError
from cervix_engine.files import output_errors
from cervix_engine.outputs.places import local_file, require_apart
from cervix_engine.run.assembly.part import Part
from cervix_engine.run.budget import DEFAULT_BUDGET, FailureBudget
from cervix_engine.run.journal import InputRules, RunIdentity
from cervix_engine.run.record import record_beside
from cervix_engine.run.session import SessionRequest
from cervix_engine.run.sizes import require_sizes
from cervix_engine.run.tuning import Auto
from cervix_engine.table.columns import OPTIONAL
from cervix_engine.table.coordinates import FOLDER, NAMES
from cervix_engine.table.formats import is_folder, require_writer
from cervix_engine.table.locations import as_it_is_now, coords_beside_slides, identified, said_by, slides_identified
from cervix_engine.table.names import escape_name
from cervix_engine.table.parquet.folder import names_beside_table
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.sources.open import open_source
from cervix_engine.tiles.sources.slides import is_named_slide
from cervix_engine.tiles.sources.source import TileSource
from cervix_engine.tiles.sources.tile_list import list_named

# Where `abnormal_at` is not asked for, and the bundle has none: more abnormal than not.
_NO_POINT = 0.5


class RunOptions(TypedDict, total=False):
    """What Python's `Model.predict_folder` passes on; each is as in `BatchConfig`, or as the command line writes it."""

    overwrite: bool
    resume: bool
    workers: int | Auto
    budget: FailureBudget | str | int
    hash_tiles: bool
    judge_quality: bool
    coords: str | os.PathLike[str] | None
    slide: str | os.PathLike[str] | None
    follow_links: bool
    grid: GridRules | None
    previews: str | os.PathLike[str] | None
    abnormal_at: float | None
    review_below: float | None
    review_within: float | None
    retry_failures: bool
    update: bool
    shard: Part | str | None


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """What was asked of a run.

    Attributes:
        tiles: where tiles come from, as `open_source` takes it.
        out: where the table goes; its suffix says the format, see `table/formats.py`.
        model: the bundle's folder; `expect_digest`, a hex SHA-256, pins it.
        precision, backend, device, batch_size, workers, require_parity: as in `SessionRequest`; what is left to choose
            is as in the earlier run, where rows of one are kept.
        overwrite: whether a finished table may be replaced.
        resume: whether a partial run that lies there is continued; else it is discarded.
        budget: how many tiles may fail before the run stops.
        hash_tiles: whether each row has the SHA-256 of its tile's bytes.
        judge_quality: whether each row has the flags of `quality.py`.
        coords: how names say where tiles lie, such as `{slide}_x{x}_y{y}`, or a CSV file that says it; None takes an
            earlier run's own, else what names spell out.
        slide: which slide a tile is of: a pattern such as `{slide}/tiles/*`, or a CSV file with `path,slide_id` (and
            maybe `minx,miny`); None takes an earlier run's own, else each tile's folder relative to the root.
        follow_links: whether links that lead out of the folder are followed, to files and to folders.
        grid: how whole slides are cut, of which `tiles` is one or a folder; None takes an earlier run's own, else a
            folder's tiles are files, and a slide is cut by default.
        previews: for whole slides, a folder for a picture of each; None makes none.
        keep_finished: whether a finished table that this run would make again is taken as it is; else it is refused.
        command: the command line that asked for it, for the record.
        abnormal_at, review_below, review_within: what a tile is decided by, as in `OperatingPoint`; None takes an
            earlier run's own, else the bundle's.
        retry_failures: predict only the failed rows of the finished table that lies there, and keep the others.
        update: bring the finished table that lies there up to date: predict only tiles that are new or changed.
        shard: the part of the tiles to predict; None for all of them.
    """

    tiles: str | os.PathLike[str]
    out: Path
    model: Path
    precision: RequestedPrecision = "auto"
    backend: str | None = None
    device: Device = ANY
    batch_size: int | Auto | None = None
    workers: int | Auto = "auto"
    overwrite: bool = False
    resume: bool = True
    require_parity: bool = False
    expect_digest: str | None = None
    budget: FailureBudget = DEFAULT_BUDGET
    hash_tiles: bool = False
    judge_quality: bool = False
    coords: str | None = None
    slide: str | None = None
    follow_links: bool = False
    grid: GridRules | None = None
    previews: Path | None = None
    retry_failures: bool = False
    keep_finished: bool = False
    command: str | None = None
    abnormal_at: float | None = None
    review_below: float | None = None
    review_within: float | None = None
    update: bool = False
    shard: Part | None = None

    def __post_init__(self) -> None:
        require_sizes(batch_size=self.batch_size, workers=self.workers)

    @property
    def shard_name(self) -> str | None:
        """As a run's identity has it."""
        return str(self.shard) if self.shard else None

    @property
    def record_path(self) -> Path:
        return record_beside(self.out)

    def contract(self, bundle: Bundle, earlier: RunIdentity | None = None) -> ModelContract:
        """The bundle's, with the operating point that is asked for, else that of the `earlier` run whose rows are kept.

        Raises:
            UsageError: there can be no such operating point, or none for the classes of this bundle.
        """
        own = bundle.contract.operating_point
        point = earlier.operating_point if earlier else own
        names = ("abnormal_at", "review_below", "review_within")
        asked = {name: value for name in names if (value := getattr(self, name)) is not None}
        if point is None and not asked:
            return replace(bundle.contract, operating_point=None)
        point = point or OperatingPoint(_NO_POINT)
        changed = any(value != getattr(point, name) for name, value in asked.items())
        try:
            # What the threshold was chosen for is no longer true of another one.
            kept = point if not changed else replace(point, **asked, sensitivity=None)
            # An earlier run remembers what decides, and not what that was chosen for.
            is_own = own is not None and kept == replace(own, sensitivity=None)
            return replace(bundle.contract, operating_point=own if is_own else kept)
        except ContractError as error:
            raise UsageError(str(error)) from error

    def request(self, bundle: Bundle, *, began: float, earlier: RunIdentity | None = None) -> SessionRequest:
        """The session that is asked for; `began` as there, `earlier` as in `contract`."""
        return SessionRequest(
            bundle,
            precision=self.precision,
            backend=self.backend,
            device=self.device,
            batch_size=self.batch_size,
            workers=self.workers,
            require_parity=self.require_parity,
            began=began,
            meaning=self.contract(bundle, earlier),
        )

    def optional_columns(self, kept: Collection[str]) -> tuple[str, ...]:
        """Those of `OPTIONAL` that are asked for, or among the columns of rows that are kept."""
        chosen = {"sha256": self.hash_tiles, "quality": self.judge_quality}
        return tuple(name for name in OPTIONAL if chosen[name] or name in kept)

    def rules(self, earlier: InputRules | None = None, *, files_by_now: bool = False) -> InputRules:
        """How the folder is read: as asked, else as by the `earlier` run whose rows are kept.

        Args:
            earlier: its rules.
            files_by_now: whether a file that it read may be another one by now.

        Raises:
            UsageError: a pattern or a file of coordinates or slides cannot be used, or may not have changed and has.
        """
        before = earlier or self._first_rules()
        if earlier and files_by_now:
            before = self._renewed(earlier)
        slide = self.slide or before.slide
        return InputRules(
            coords=identified(self.coords or before.coords or NAMES),
            slide=slides_identified(slide) if slide else None,
            follow_links=self.follow_links or before.follow_links,
            grid=self._grid(before),
        )

    def _grid(self, before: InputRules) -> str | None:
        if self.grid is None and before.grid is None and is_named_slide(self.tiles):
            return GridRules().text
        return self.grid.text if self.grid else before.grid

    def _renewed(self, earlier: InputRules) -> InputRules:
        """Those of an earlier run with its files as they are now; a list of tiles may have come to say slides."""
        tiles = list_named(self.tiles)
        slides, coords = said_by(tiles) if tiles else (None, None)
        return replace(
            earlier,
            slide=slides if slides and earlier.slide == FOLDER else as_it_is_now(earlier.slide),
            coords=coords if coords and earlier.coords == NAMES else as_it_is_now(earlier.coords),
        )

    def _first_rules(self) -> InputRules:
        """What holds where nothing is said: what a list of tiles says of them, else what names say."""
        tiles = list_named(self.tiles)
        slides, coords = said_by(tiles) if tiles else (None, None)
        return InputRules(coords_beside_slides(self.slide) or coords, slides or FOLDER)

    def source(self, rules: InputRules | None = None) -> TileSource:
        """Where tiles come from, read by the rules of a run; without these, as asked."""
        if rules is None:
            return open_source(self.tiles, follow_links=self.follow_links, grid=self.grid)
        grid = GridRules.from_text(rules.grid) if rules.grid else None
        return open_source(self.tiles, follow_links=rules.follow_links, grid=grid, previews=self.previews)

    def arguments(self) -> dict[str, Any]:
        """What was asked, by option, for the run's record."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        del values["command"]  # the record has it beside these
        return {name: _as_json(value) for name, value in values.items()}


def _as_json(value: object) -> object:
    if isinstance(value, Path):
        return escape_name(os.fspath(value))
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Device | Part):
        return str(value)
    return asdict(value) if isinstance(value, FailureBudget | GridRules) else value


def check_paths(config: BatchConfig) -> None:
    """Refuse what can be seen to be wrong before anything is opened.

    Raises:
        UsageError: the tiles are no folder, or the table's name or place cannot be one.
        OutputError: there is no folder for the table.
    """
    source = config.source()
    source.check()
    parent = config.out.parent
    if not stat.S_ISDIR(_mode(parent)):
        raise OutputError(f"no such folder for the table: {parent}")
    check_place(config.out)
    if source.holds(config.out):
        raise UsageError(f"the table would lie among the tiles: choose --out outside {config.tiles}")
    require_writer(config.out)
    inputs = (config.model, local_file(config.coords), local_file(config.slide))
    require_apart(config.out, inputs)
    if config.previews:
        _check_previews(config, source)
    if config.retry_failures and config.update:
        raise UsageError("--retry-failures and --update: ask for one of them, then for the other")
    if config.shard:
        _check_shard(config)
    if config.coords or config.slide:
        config.rules()


def _check_previews(config: BatchConfig, source: TileSource) -> None:
    """Refuse a folder of pictures where one could take the place of a slide, or lie in the table or the bundle."""
    assert config.previews is not None
    if config.previews.exists() and not config.previews.is_dir():
        raise UsageError(f"{config.previews} is no folder")
    if source.holds(config.previews / "slide.png"):
        raise UsageError(f"pictures would lie among the slides: choose --preview outside {config.tiles}")
    require_apart(config.previews, (config.out if is_folder(config.out) else None, config.model))


def check_place(out: Path) -> None:
    """Refuse what no table may take the place of, though the rename at the end would replace even a device.

    Raises:
        UsageError: what lies there is no file, or a folder that holds more than a table; or it names no place.
    """
    if out.name in ("", ".."):
        raise UsageError(f"{str(out)!r} names no table: add a name, such as {out / 'preds.csv'}")
    mode = _mode(out)
    if mode and not is_folder(out) and not stat.S_ISREG(mode):
        raise UsageError(f"{out} is a folder or special file, expected a file name for the table")
    if mode and is_folder(out) and out.is_mount():
        raise UsageError(
            f"{out} is a mount point, whose place no folder can take: name a new one, such as {out / 'preds'}"
        )
    if mode and is_folder(out):
        if stat.S_ISREG(mode):
            raise UsageError(f"{out} is a file, and a table of this name is a folder: add .csv or another suffix")
        with output_errors(f"cannot look at {out}"):
            others = names_beside_table(out) if stat.S_ISDIR(mode) else [out.name]
        if others:
            raise UsageError(
                f"{out} is a folder or special file that holds more than a table, {others[0]}: name another"
            )


def _check_shard(config: BatchConfig) -> None:
    if config.batch_size == "auto":
        raise UsageError("--shard: every shard needs the same batch size, so name one in place of --batch-size auto")
    if config.retry_failures or config.update:
        raise UsageError("--shard: failed rows and new tiles are predicted once all shards are joined by cervix-merge")


def _mode(path: Path) -> int:
    """What lies at `path`, as `stat` says it; 0 where there is nothing or cannot be, as for a name that is too long."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0
