"""What a run does about what lies at its table's place: decided once, before anything is loaded.

| what lies there | asked for | the run |
|---|---|---|
| nothing | | `fresh`: lists the tiles and predicts all |
| a finished table | `overwrite` | `fresh`; that table stays until the rename |
| a finished table | `retry_failures` | `retry`: predicts the failed rows' tiles, keeps all other rows |
| a finished table | `keep_finished`, and what made it | nothing, and `Done` |
| a partial run | | `resume`: takes its stored listing, predicts what no shard holds; also of a `retry` |
| a partial run | not `resume` | as if it were not there |
| a run that ended behind its rename | the same again | nothing: it is finished, and `Done` |

Rows that are kept must be as those that are added, so what their run was is what this one must be: what is not asked
for is taken from it, and what is asked for otherwise is refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import OutputError, OutputExistsError, ResumeMismatchError, UsageError
from cervix_engine.files import output_errors, sha256_file
from cervix_engine.run.config import BatchConfig
from cervix_engine.run.journal import InputRules, RunIdentity
from cervix_engine.run.record import RunRecord, record_of
from cervix_engine.run.session import Session, SessionRequest, decided_by
from cervix_engine.run.transaction import State, TableTransaction
from cervix_engine.run.tuning import Auto
from cervix_engine.table.locations import check_slides, slides_for_run
from cervix_engine.table.reader import Table
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
        partial: the identity of the partial run that goes on.
        base: the finished table whose failed rows are predicted again.
    """

    kind: Literal["fresh", "resume", "retry"]
    request: SessionRequest
    optional: tuple[str, ...]
    rules: InputRules
    source: TileSource
    partial: RunIdentity | None = None
    base: RunRecord | None = None

    def list_tiles(self, table: TableTransaction) -> Listing:
        """The tiles of this run, listed where `table` keeps them."""
        if self.kind == "resume":
            return table.stored_listing(self.source)
        if self.base:
            return table.list_failed(self.source, self.base)
        listing = table.list_tiles(self.source)
        check_slides(slides_for_run(self.rules.slide, self.source.slide_name), listing.paths())
        return listing

    def row_format(self, session: Session, table: TableTransaction) -> RowFormat:
        """How the rows of this run are written: what names mean rests on all tiles of the table."""
        rules = self.rules
        paths = Table.open(table.out).paths() if self.base else session.listing.paths()
        return RowFormat.for_run(
            session.contract,
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
        now = session.identity(session.listing, optional=self.optional, rules=self.rules)
        return self.require_same(now)

    def require_same(self, now: RunIdentity) -> RunIdentity:
        """`now`, as that of a retry where this is one, if it agrees with all rows that are kept.

        Raises:
            ResumeMismatchError: it does not.
        """
        if self.base:
            made = self.base.identity
            made.check(
                replace(now, listing_sha256=made.listing_sha256, retry_of=made.retry_of),
                what="the table was made",
                remedy="its failed rows can only be predicted as the others were",
            )
        mended = self.base.table if self.base else None
        now = replace(now, retry_of=mended.table_sha256 if mended else None)
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
    base = _table_to_mend(config.out) if config.retry_failures else None
    if base and not base.failed:
        return Done(base)
    if not base and not config.overwrite:
        if config.keep_finished and not partial and (record := _made_alike(config, bundle)):
            return Done(record)
        _require_free(config.out)
    earlier = partial or (base.identity if base else None)
    request = config.request(bundle, began=began, earlier=earlier)
    if earlier is None:
        rules = config.rules()
        return Plan("fresh", request, config.optional_columns(()), rules, config.source(rules))
    return _going_on(config, request, earlier, partial=partial, base=base)


def _asks_the_same(config: BatchConfig, bundle: Bundle, finished: RunIdentity) -> bool:
    asked = (config.source().identity, bundle.digest)
    return (
        config.retry_failures == (finished.retry_of is not None)
        and asked == (finished.root, finished.bundle_digest)
        and decided_by(config.contract(bundle, finished).operating_point) == decided_by(finished.operating_point)
    )


def _made_alike(config: BatchConfig, bundle: Bundle) -> RunRecord | None:
    """The record of the finished table that lies there, if it is whole and is what this run would make."""
    try:
        record = record_of(config.out)
        whole = record.table is not None and sha256_file(config.out) == record.table.table_sha256
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
        columns=RowFormat(contract, optional=config.optional_columns(made.columns)).columns,
        **asdict(config.rules(made.rules)),
        **decided_by(contract.operating_point),
    )
    return record if whole and record.status == "done" and asked == made else None


def _table_to_mend(table: Path) -> RunRecord:
    """The record of a finished table whose failed rows may be predicted again."""
    with output_errors(f"cannot look at {table}"):
        there = table.is_file()
    if not there:
        raise UsageError(f"no finished table whose failed rows could be predicted again: {table}")
    try:
        record = record_of(table)
    except OutputError as error:
        raise UsageError(f"nothing says how {table} was made: {error}") from error
    with output_errors(f"cannot read {table}"):
        if record.table is None or sha256_file(table) != record.table.table_sha256:
            raise OutputError(f"{table} is not as its run wrote it: cervix-verify says where")
    return record


def _require_free(out: Path) -> None:
    with output_errors(f"cannot look at {out}"):
        exists = out.exists()
    if exists:
        raise OutputExistsError(f"{out} is there already: pass --overwrite to replace it")


def _going_on(
    config: BatchConfig,
    request: SessionRequest,
    earlier: RunIdentity,
    *,
    partial: RunIdentity | None,
    base: RunRecord | None,
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
    optional, rules = config.optional_columns(earlier.columns), config.rules(earlier.rules)
    source = config.source(rules)
    plan = Plan("resume" if partial else "retry", request, optional, rules, source, partial, base)
    # What needs no model to be seen is refused before one is looked for, and the machine blamed.
    as_asked = replace(
        earlier,
        root=source.identity,
        bundle_digest=request.bundle.digest,
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        columns=RowFormat(request.contract, optional=optional).columns,
        **asdict(rules),
        **decided_by(request.contract.operating_point),
    )
    plan.require_same(as_asked)
    return plan


def _batch_size(asked: int | Auto | None, earlier: RunIdentity) -> int:
    """Rows depend on it: once a run has begun, nothing is measured or halved again."""
    if asked is None or asked == "auto" or _may_be_halved(asked, earlier):
        return earlier.batch_size
    return asked


def _may_be_halved(asked: int, earlier: RunIdentity) -> bool:
    """Whether the same command may have begun the earlier run: on a GPU that was too full for what is asked."""
    halved = (asked >> halvings for halvings in range(1, asked.bit_length()))
    return earlier.computes_on == "cuda" and earlier.batch_size in halved
