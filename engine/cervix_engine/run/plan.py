"""What a run does about what lies at its table's place: decided once, before anything is loaded.

| what lies there | asked for | the run |
|---|---|---|
| nothing | | `fresh`: lists the tiles and predicts all |
| a finished table | `overwrite` | `fresh`; that table stays until the rename |
| a finished table | `retry_failures` | `retry`: predicts the failed rows' tiles, keeps all other rows |
| a finished table | `update` | `update`: predicts what is new or changed, drops what is gone, keeps all other rows |
| a finished table | `update`, and there is no news | nothing, and `Done` |
| a finished table | `keep_finished`, and what made it | nothing, and `Done` |
| a partial run | | `resume`: takes its stored listing, predicts what no shard holds; also of a `retry`, an `update` |
| a partial run | not `resume` | as if it were not there |
| a run that ended behind its rename | the same again | nothing: it is finished, and `Done` |

Rows that are kept must be as those that are added, so what their run was is what this one must be: what is not asked
for is taken from it, and what is asked for otherwise is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.errors import OutputError, ResumeMismatchError, UsageError
from cervix_engine.files import output_errors
from cervix_engine.run.assembly.base import Base, Growth, Kept, Moved, list_news, not_moved
from cervix_engine.run.assembly.beside import record_of
from cervix_engine.run.assembly.listings import failed_listing, stored_listing
from cervix_engine.run.assembly.part import Part
from cervix_engine.run.config import BatchConfig
from cervix_engine.run.journal import InputRules, RunIdentity
from cervix_engine.run.record import RunRecord
from cervix_engine.run.session import Session, SessionRequest, decided_by
from cervix_engine.run.transaction import State, TableTransaction
from cervix_engine.run.tuning import Auto
from cervix_engine.table.coordinates import FOLDER, NAMES
from cervix_engine.table.formats import require_no_table, table_exists, table_sha256
from cervix_engine.table.locations import check_slides, locating_for_run, remembered_file, slides_for_run
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.sources.source import TileSource


@dataclass(frozen=True, slots=True)
class Done:
    """There is nothing to do: `record` says what was done."""

    record: RunRecord


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, with all that earlier runs decide for it.

    Attributes:
        kind: see above.
        request: the session that it needs.
        optional: the table's columns beyond the standard ones.
        rules: how the tiles are found and named.
        source: where they come from.
        shard: the part of the listing that is predicted; None for all of it.
        partial: the identity of the partial run that goes on.
        base: the finished table that the new one is made from.
        news: of an update: the tiles that it predicts.
    """

    kind: Literal["fresh", "resume", "retry", "update"]
    request: SessionRequest
    optional: tuple[str, ...]
    rules: InputRules
    source: TileSource
    partial: RunIdentity | None = None
    base: Base | None = None
    news: Listing | None = None
    shard: Part | None = None

    def list_tiles(self, table: TableTransaction) -> Listing:
        """The tiles of this run, listed where `table` keeps them."""
        if self.news:
            return self.news
        if self.kind == "resume":
            return stored_listing(table.journal, self.source, self.base)
        if self.base:
            self._require_same_places(self.base)
            return failed_listing(self.base, self.source, spool=table.empty_folder())
        return self._list_all(table)

    @property
    def only_drops(self) -> bool:
        """Whether no tile is to be predicted: an update that only drops rows."""
        return self.news is not None and not self.news.found

    def with_news(self, table: TableTransaction, *, compared: Callable[[Kept], None]) -> Plan | Done:
        """This plan of an update, with what is new; there may be nothing to do.

        Args:
            table: the finished table's place.
            compared: told what is kept and what changes.

        Raises:
            OutputError: the rows that are kept would not be those of a new run.
        """
        assert self.base is not None
        listing = self._list_all(table)
        news = list_news(self.base, listing, moved=self._moved(self.base, listing.paths()))
        growth = Growth(self.base, news, table.folder)
        self._require_same_slides(growth)
        kept = growth.kept()
        compared(kept)
        return replace(self, news=news) if kept.changes else Done(self.base.record)

    def _moved(self, base: Base, paths: Iterable[str]) -> Moved:
        """Which rows have another slide or place by now: none, where no file says so that has changed since."""
        made = base.record.identity.rules
        if (made.slide, made.coords) == (self.rules.slide, self.rules.coords):
            return not_moved
        rows = self._row_format(self.request.contract, paths)
        return lambda row: not rows.places_alike(os.fsdecode(row.name), row.cells)

    def _require_same_places(self, base: Base) -> None:
        moved = self._moved(base, (os.fsdecode(row.name) for row in base.rows()))
        if any(moved(row) for row in base.rows() if not row.error):
            raise OutputError(
                "the slides or coordinates of rows that would be kept have changed since the table was made: bring it "
                "up to date with --update, then retry"
            )

    def _require_same_slides(self, growth: Growth) -> None:
        slide, coords = self.rules.slide, self.rules.coords or NAMES
        before = (os.fsdecode(row.name) for row in growth.base.rows())
        was, now = (locating_for_run(coords, slide=slide, paths=paths) for paths in (before, growth.paths()))
        if was != now:
            raise OutputError(
                "what is new or gone makes slides of one name in several folders, so rows that would be kept have "
                "other slides by now: make the table anew with --overwrite"
            )

    def _list_all(self, table: TableTransaction) -> Listing:
        listing = table.list_tiles(self.source)
        check_slides(slides_for_run(self.rules.slide, self.source.slide_name), listing.paths())
        return listing

    def row_format(self, contract: ModelContract, listing: Listing, table: TableTransaction) -> RowFormat:
        """How the rows of this run are written: what names mean rests on all tiles of the table."""
        paths = Growth(self.base, listing, table.folder).paths() if self.base else listing.paths()
        return self._row_format(contract, paths)

    def _row_format(self, contract: ModelContract, paths: Iterable[str]) -> RowFormat:
        rules = self.rules
        return RowFormat.for_run(
            contract,
            optional=self.optional,
            slide=rules.slide,
            coords=rules.coords,
            root_name=self.source.slide_name,
            paths=paths,
        )

    def identity(self, session: Session) -> RunIdentity:
        """Everything that the rows of this run depend on, now that it is known what computes them.

        Raises:
            ResumeMismatchError: the rows that are kept depend on something else.
        """
        return self.require_same(session.identity(session.listing, optional=self.optional, rules=self.rules))

    def require_same(self, now: RunIdentity) -> RunIdentity:
        """`now`, as that of a retry or an update where this is one, if it agrees with all rows that are kept.

        Raises:
            ResumeMismatchError: it does not.
        """
        now = replace(now, shard=str(self.shard) if self.shard else None)
        if self.base:
            made = self.base.record.identity
            alike = replace(now, listing_sha256=made.listing_sha256, retry_of=made.retry_of, update_of=made.update_of)
            made.check(
                _but_for_files(alike, made),
                what="the table was made",
                remedy=f"{self.base.what} can only be predicted as the others were",
            )
            now = self.base.marked(now)
        if self.partial:
            self.partial.check(now)
        return now


def decide(config: BatchConfig, bundle: Bundle, table: TableTransaction, *, began: float) -> Plan | Done:
    """Look at what lies at the table's place, finish what only needs that, and decide what to do about the rest.

    Args:
        config: what is asked.
        bundle: the one that is asked for.
        table: its place, locked.
        began: when the run's start began, by `time.perf_counter`.

    Raises:
        OutputExistsError: a finished table lies there, and may not be replaced.
        ResumeMismatchError: what lies there was begun in another way.
        UsageError: there is no table to retry, or a file of coordinates cannot be used.
        OutputError: what lies there cannot be read, or is not as its run wrote it.
    """
    partial = table.journal.identity if config.resume and table.load() is not State.ABSENT else None
    if partial and table.state is State.COMMITTED:
        table.recover()
        if not config.overwrite and _asks_the_same(config, bundle, partial):
            return Done(RunRecord.load(config.record_path))
        partial = None
    base = _base(config)
    if not base and not config.overwrite:
        if config.keep_finished and not partial and (record := _made_alike(config, bundle)):
            return Done(record)
        require_no_table(config.out)
    return _decided(config, bundle, partial=partial, base=base, began=began)


def foresee(config: BatchConfig, bundle: Bundle, *, began: float) -> Plan | Done:
    """What a run would do that began now; whatever lies at the table's place stays as it is, a partial run is not seen.

    Arguments and errors as those of `decide`.
    """
    return _decided(config, bundle, partial=None, base=_base(config), began=began)


def _decided(
    config: BatchConfig, bundle: Bundle, *, partial: RunIdentity | None, base: Base | None, began: float
) -> Plan | Done:
    if base and base.kind == "retry" and not base.record.failed:
        return Done(base.record)
    earlier = partial or (base.record.identity if base else None)
    request = config.request(bundle, began=began, earlier=earlier)
    if earlier is None:
        rules = config.rules()
        return Plan("fresh", request, config.optional_columns(()), rules, config.source(rules), shard=config.shard)
    return _going_on(config, request, earlier, partial=partial, base=base)


def _asks_the_same(config: BatchConfig, bundle: Bundle, finished: RunIdentity) -> bool:
    if config.update or finished.update_of:  # whether there are news is seen anew
        return False
    asked = (config.source().identity, bundle.digest, config.shard_name)
    return (
        config.retry_failures == (finished.retry_of is not None)
        and asked == (finished.root, finished.bundle_digest, finished.shard)
        and decided_by(config.contract(bundle, finished).operating_point) == decided_by(finished.operating_point)
    )


def _made_alike(config: BatchConfig, bundle: Bundle) -> RunRecord | None:
    """The record of the finished table that lies there, if it is whole and is what this run would make."""
    try:
        record = record_of(config.out)
        whole = record.table is not None and table_sha256(config.out) == record.table.table_sha256
    except (OutputError, OSError):
        return None
    made = record.identity
    contract = config.contract(bundle, made)
    asked = replace(
        made,
        root=config.source().identity,
        bundle_digest=bundle.digest,
        backend=config.backend or made.backend,
        precision=made.precision if config.precision == "auto" else config.precision,
        batch_size=_batch_size(config.batch_size, made),
        shard=config.shard_name,
        columns=RowFormat(contract, optional=config.optional_columns(made.columns)).columns,
        **asdict(config.rules(made.rules, files_by_now=True)),
        **decided_by(contract.operating_point),
    )
    return record if whole and record.status == "done" and asked == made else None


def _base(config: BatchConfig) -> Base | None:
    """The finished table that a retry or an update is made from; an update may find none yet.

    Raises:
        UsageError, OutputError: there is none to retry, or it cannot be used.
    """
    table = config.out
    if not (config.retry_failures or config.update):
        return None
    with output_errors(f"cannot look at {table}"):
        there = table_exists(table)
    if not there:
        if config.update:
            return None
        raise UsageError(f"no finished table whose failed rows could be predicted again: {table}")
    try:
        record = record_of(table)
    except OutputError as error:
        raise UsageError(f"nothing says how {table} was made: {error}") from error
    with output_errors(f"cannot read {table}"):
        if record.table is None or table_sha256(table) != record.table.table_sha256:
            raise OutputError(f"{table} is not as its run wrote it: cervix-verify says where")
    if record.identity.shard:
        raise UsageError(f"{table} is shard {record.identity.shard}: join all of them with cervix-merge first")
    return Base(table, record, "update" if config.update else "retry")


def _going_on(
    config: BatchConfig,
    request: SessionRequest,
    earlier: RunIdentity,
    *,
    partial: RunIdentity | None,
    base: Base | None,
) -> Plan:
    """The plan of a run that keeps rows of an earlier one, if what is asked lets it."""
    if not config.device.allows(earlier.computes_on):
        raise ResumeMismatchError(
            f"the run that lies there computes on {earlier.backend}, which --device {config.device} leaves out: "
            "run it as before, or pass --no-resume to discard it"
        )
    precision = earlier.precision if config.precision == "auto" else config.precision
    backend, batch_size = config.backend or earlier.backend, _batch_size(config.batch_size, earlier)
    request = replace(request, precision=precision, backend=backend, batch_size=batch_size, keep_batch_size=True)
    optional, rules = config.optional_columns(earlier.columns), config.rules(earlier.rules, files_by_now=not partial)
    source, kind = config.source(rules), base.kind if base and not partial else "resume"
    plan = Plan(kind, request, optional, rules, source, partial, base, shard=config.shard)
    # What needs no model to be seen is refused before one is looked for, and the machine blamed.
    as_asked = replace(
        earlier,
        root=source.identity,
        bundle_digest=request.bundle.digest,
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        columns=RowFormat(request.contract, optional=optional).columns,
        shard=config.shard_name,
        **asdict(rules),
        **decided_by(request.contract.operating_point),
    )
    plan.require_same(as_asked)
    return plan


def _but_for_files(now: RunIdentity, made: RunIdentity) -> RunIdentity:
    """`now` with the files of slides and coordinates that `made` read, as they were: each kept row is compared."""
    slide = made.slide if _is_same_file(now.slide, made.slide, of=now.root) else now.slide
    return replace(
        now, slide=slide, coords=made.coords if _is_same_file(now.coords, made.coords, of=now.root) else now.coords
    )


def _is_same_file(now: str | None, made: str | None, *, of: str) -> bool:
    """Whether both are one file, or `now` is the list `of` the tiles, which once said nothing of this kind."""
    file = remembered_file(now)
    return file is not None and file == (of if made in (FOLDER, NAMES) else remembered_file(made))


def _batch_size(asked: int | Auto | None, earlier: RunIdentity) -> int:
    """Rows depend on it: once a run has begun, nothing is measured or halved again."""
    if asked is None or asked == "auto" or _may_be_halved(asked, earlier):
        return earlier.batch_size
    return asked


def _may_be_halved(asked: int, earlier: RunIdentity) -> bool:
    """Whether the same command may have begun the earlier run: on a GPU that was too full for what is asked."""
    halved = (asked >> halvings for halvings in range(1, asked.bit_length()))
    return earlier.computes_on == "cuda" and earlier.batch_size in halved
