"""The driver of a run on many machines: it hands out blocks, journals digests, and commits the table.

    driver:  listing ── blocks ──> workers ── rows ──> the run's folder, on storage that all of them see
                ^                                          │
                └── journal <── digests ───────────────────┘          then assembly and rename, as ever

No row passes through it before the assembly, and none at all where the table is a folder, whose files workers write
too. It holds the table's lock, so it alone names a shard or a file: what a lost worker, or one of a lost driver, still
writes lies under names of its own, and is swept away with the run's folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from cervix_engine.cluster.blocks import BlockCutter, ChunkQueue
from cervix_engine.cluster.worker import Done, Opened, WorkerJob
from cervix_engine.files import output_errors, sha256_file
from cervix_engine.run.assembly.chunks import WrittenChunk
from cervix_engine.run.batch import Books, Job
from cervix_engine.run.record import NodeRecord, RunRecord
from cervix_engine.run.stream.stats import StageStats
from cervix_engine.run.transaction import TableTransaction
from cervix_engine.table.formats import is_folder
from cervix_engine.tiles.listing import Listing


@dataclass(frozen=True, slots=True)
class Finished:
    """A block that came back.

    Attributes:
        done: the block and its shard.
        host: the machine.
        worker: which one, by a number.
    """

    done: Done
    host: str
    worker: int


class Pool(Protocol):
    """Workers on many machines, all of which have opened the same session."""

    def first(self) -> Opened:
        """What the first worker has opened; one that opens something else stops the run.

        Raises:
            CervixError: it cannot open it.
        """

    def results(self, cutter: BlockCutter) -> Iterator[Finished]:
        """Have all blocks predicted, in any order, those of lost workers again.

        Raises:
            CervixError: a worker failed, or all are lost.
        """

    def write_chunks(self, chunks: ChunkQueue) -> Iterator[WrittenChunk]:
        """Have all files of a table written that is a folder, in any order, those of lost workers again.

        Raises:
            CervixError: as `results`.
        """

    def stages(self) -> tuple[StageStats, ...]:
        """End the workers, and say what each stage of them did together."""


OpenPool = Callable[[WorkerJob], AbstractContextManager[Pool]]


def predict_on(open_pool: OpenPool) -> Callable[[Job], RunRecord]:
    """What `RunSetup.predict` is for a run on many machines."""
    return lambda job: _predict(job, open_pool)


def _predict(job: Job, open_pool: OpenPool) -> RunRecord:
    listing, plan, table = job.list_tiles(), job.plan, job.table
    with output_errors("cannot read the listing"):
        listing_sha256 = sha256_file(listing.path)
    with open_pool(_worker_job(job, listing)) as pool:
        opened = pool.first()
        identity = plan.require_same(replace(opened.identity, listing_sha256=listing_sha256))
        choice, provenance = opened.choice, job.asked(opened.choice.provenance)
        job.setup.opened(choice)
        with table.begin(identity, listing, backend=choice.info, provenance=provenance, base=plan.base) as begun:
            started = time.perf_counter()
            with cutter_for(table, listing) as cutter:
                nodes = journal_results(table, pool.results(cutter), books=job.books(begun))
            table.require_balance()
            took_s = time.perf_counter() - started
            chunks = _written_by(pool, table, listing) if _workers_write(job) else None
            table.assemble(
                stream_s=took_s,
                stages=pool.stages(),
                nodes=nodes,
                drift=job.drift(job.watch(listing), listing),
                chunks=chunks,
            )
            return table.commit()


def _written_by(pool: Pool, table: TableTransaction, listing: Listing) -> list[WrittenChunk]:
    first_tile = table.journal.identity.tiles(listing.found).start
    with ChunkQueue(table.chunks(), listing.path, first_tile=first_tile) as chunks:
        return list(pool.write_chunks(chunks))


def _workers_write(job: Job) -> bool:
    """Whether workers write the table: a folder, all of whose rows they have predicted."""
    return is_folder(job.table.out) and job.plan.base is None


def cutter_for(table: TableTransaction, listing: Listing) -> BlockCutter:
    """Cuts what the table of a run that has begun still lacks."""
    identity = table.journal.identity
    return BlockCutter(
        listing.path,
        own=identity.batches(listing.found),
        done=table.journal.batches(),
        batch_size=identity.batch_size,
        last_tile=identity.tiles(listing.found).stop,
    )


def _worker_job(job: Job, listing: Listing) -> WorkerJob:
    plan = job.plan
    return WorkerJob(
        request=plan.request,
        choose=job.setup.choose,
        steps=job.setup.steps,
        source=listing.source,
        listing=listing.path.absolute(),
        folder=job.table.folder.absolute(),
        optional=plan.optional,
        rules=plan.rules,
        row_format=plan.row_format(plan.request.contract, listing, job.table),
        watch=job.watch(listing),
        writes_parquet=_workers_write(job),
    )


def journal_results(table: TableTransaction, results: Iterator[Finished], *, books: Books) -> tuple[NodeRecord, ...]:
    """Journal what comes back, and keep the books; what each machine did."""
    workers: dict[str, set[int]] = {}
    counts: dict[str, list[int]] = {}
    for finished in results:
        shard, host = finished.done.shard, finished.host
        table.take(shard, finished.done.file)
        failed = sum(shard.failures.values())
        workers.setdefault(host, set()).add(finished.worker)
        count = counts.setdefault(host, [0, 0])
        count[0] += 1
        count[1] += shard.ok + failed
        books.add(seen=shard.ok + failed, failed=failed)
    return tuple(NodeRecord(host, len(workers[host]), *counts[host]) for host in sorted(counts))
