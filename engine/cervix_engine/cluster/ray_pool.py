"""Workers as actors of a Ray cluster: one a GPU, or one a node or a share of its CPUs, wherever nodes come and go.

An actor that is lost, alone or with its node, is replaced, and its blocks are handed out again; whatever it had written
was never journalled. A node that joins gets actors too. What a worker raises itself stops the run, as it would locally.
Ray schedules and reports deaths; all else is `worker.py` and `driver.py`, which know nothing of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

from cervix_engine.cluster.blocks import Block, BlockCutter, ChunkQueue
from cervix_engine.cluster.driver import Finished, Pool
from cervix_engine.cluster.ray_connection import connected
from cervix_engine.cluster.ray_places import Place, places_on
from cervix_engine.cluster.worker import BlockWorker, Done, Opened, WorkerJob, summed
from cervix_engine.errors import BackendError, CervixError
from cervix_engine.run.assembly.chunks import Chunk, WrittenChunk
from cervix_engine.run.stream.stats import StageStats

log = logging.getLogger(__name__)

# The one that an actor predicts, the one that its stream goes on with, and one on its way.
IN_FLIGHT = 3
# A block is about so many seconds of an actor's work: little enough to lose, and few of them to journal.
BLOCK_S = 10.0
SMALLEST_BLOCK, LARGEST_BLOCK = 4096, 262_144  # tiles
LOOK_EVERY_S = 2.0
# So often actors may be lost one after another, for each node, without one block that comes back meanwhile.
MOST_LOSSES = 5
CLOSE_S = 60.0


@dataclass(frozen=True, slots=True)
class RayOptions:
    """How a run uses a cluster.

    Attributes:
        address: `auto` for the cluster of this machine, else `HOST:PORT` of its head node.
        cpus: that each worker takes of a node without a GPU, and computes with; None takes all, with one worker.
        smallest_block: tiles; blocks grow from there to `BLOCK_S` of work.
    """

    address: str
    cpus: int | None = None
    smallest_block: int = SMALLEST_BLOCK


class RemoteWorker:
    """The actor. Its constructor does nothing, so that an error of opening is an answer and not a death."""

    def __init__(self) -> None:
        self._worker: BlockWorker | None = None

    def open(self, job: WorkerJob) -> Opened:
        self._worker = BlockWorker(job)
        return self._worker.opened()

    def predict(self, block: Block) -> Done:
        assert self._worker is not None
        return self._worker.predict(block)

    def write_chunk(self, chunk: Chunk) -> WrittenChunk:
        assert self._worker is not None
        return self._worker.write_chunk(chunk)

    def close(self) -> tuple[StageStats, ...]:
        return self._worker.close() if self._worker else ()


@dataclass(slots=True, eq=False)
class _Member:
    """An actor as the driver knows it: started, then opening, then ready. `opening` is the answer that it waits for.

    `tasks` is its work, by answer.
    """

    number: int
    place: Place
    host: str
    actor: Any
    opening: Any = None
    ready: bool = False
    tasks: dict[Any, Block | Chunk] = field(default_factory=dict)
    tiles_per_sec: float = 0.0
    last: float = 0.0


@contextmanager
def ray_pool(job: WorkerJob, options: RayOptions) -> Iterator[Pool]:
    """Connect to a cluster, and leave it as it was.

    Raises:
        BackendUnavailableError: Ray is not installed.
        UsageError: there is no cluster at that address.
    """
    with connected(options.address) as ray:
        pool = RayPool(ray, job, options)
        try:
            yield pool
        finally:
            pool.end()


class RayPool:
    """Actors on all nodes of a connected cluster.

    Args:
        ray: the module.
        job: what each actor opens.
        options: how.
    """

    def __init__(self, ray: Any, job: WorkerJob, options: RayOptions) -> None:
        self._ray = ray
        self._job = job
        self._options = options
        self._members: list[_Member] = []
        self._started = 0
        self._losses = 0
        self._looked = 0.0
        self._opened: Opened | None = None
        self._actor_class = ray.remote(max_restarts=0, max_concurrency=IN_FLIGHT + 2)(RemoteWorker)

    # ---- the actors

    def first(self) -> Opened:
        """See `Pool.first`. What one actor finds, `auto` sizes among it, the others are told."""
        while self._opened is None:
            self._look_for_nodes()
            if not self._members:
                cpus = self._options.cpus
                wanted = f"the {cpus} CPUs of --ray-cpus" if cpus else "a CPU"
                raise BackendError(f"the cluster has no node that can compute: none offers a GPU, or {wanted}")
            # All of them start at once, and one opens.
            if not any(member.opening for member in self._members):
                self._open(self._members[0])
            self._collect(None)
        opened = self._opened
        request = replace(
            self._job.request,
            precision=opened.choice.info.precision,
            backend=opened.choice.info.backend,
            batch_size=opened.identity.batch_size,
            keep_batch_size=True,
        )
        self._job = replace(self._job, request=request)
        return opened

    def _places(self) -> list[Place]:
        """Where actors should be and are not."""
        missing = []
        for places in places_on(self._ray.nodes(), self._job.request.device, cpus=self._options.cpus):
            there = sum(member.place.node == places[0].node for member in self._members) if places else 0
            missing += places[there:]
        return missing

    def _start(self, place: Place) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(place.node, soft=False)
        actor = self._actor_class.options(scheduling_strategy=where, **place.takes).remote()
        self._started += 1
        self._members.append(_Member(self._started, place, place.host, actor))
        log.debug("a worker starts on %s", place.host)

    def _open(self, member: _Member) -> None:
        request, place = self._job.request, member.place
        if request.workers == "auto" and place.workers:
            request = replace(request, workers=place.workers)
        request = replace(request, threads=place.threads)
        member.opening = member.actor.open.remote(replace(self._job, request=request))

    def _look_for_nodes(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S and self._members:
            return
        self._looked = now
        for place in self._places():
            self._start(place)

    # ---- the work

    def results(self, cutter: BlockCutter) -> Iterator[Finished]:
        """See `Pool.results`."""
        for member, done in self._work(cutter):
            yield Finished(done, member.host, member.number)

    def write_chunks(self, chunks: ChunkQueue) -> Iterator[WrittenChunk]:
        """See `Pool.write_chunks`."""
        for _, written in self._work(chunks):
            yield written

    def _work(self, queue: BlockCutter | ChunkQueue) -> Iterator[tuple[_Member, Any]]:
        """Have all of a queue done, and give each answer."""
        while True:
            self._look_for_nodes()
            for member in self._members:
                if not member.ready and member.opening is None:
                    self._open(member)
                self._feed(member, queue)
            if queue.exhausted and not any(member.tasks for member in self._members):
                return
            yield from self._collect(queue)

    def _feed(self, member: _Member, queue: BlockCutter | ChunkQueue) -> None:
        while member.ready and len(member.tasks) < IN_FLIGHT:
            # Towards the end blocks get smaller, so that all actors end at about the same time.
            share = queue.tiles_left // (2 * IN_FLIGHT * len(self._members))
            smallest = self._options.smallest_block
            tiles = min(LARGEST_BLOCK, max(smallest, min(int(member.tiles_per_sec * BLOCK_S), share)))
            task = queue.cut(tiles)
            if task is None:
                return
            does = member.actor.predict if isinstance(task, Block) else member.actor.write_chunk
            member.tasks[does.remote(task)] = task

    def _collect(self, queue: BlockCutter | ChunkQueue | None) -> list[tuple[_Member, Any]]:
        """Wait for answers, and take all that are there."""
        waiting = {ref: member for member in self._members for ref in (member.opening, *member.tasks) if ref}
        if not waiting:
            time.sleep(LOOK_EVERY_S / 10)
            return []
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=LOOK_EVERY_S)
        more, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        finished = []
        for ref in dict.fromkeys((*ready, *more)):
            member = waiting[ref]
            if member in self._members and (answer := self._answer(member, ref, queue)):
                finished.append((member, answer))
        return finished

    def _answer(self, member: _Member, ref: Any, queue: BlockCutter | ChunkQueue | None) -> Any:
        """The answer of a task; None where it says that an actor is ready, or lost."""
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, CervixError):
                raise error.cause from None
            raise BackendError(f"a worker on {member.host} failed: {error.cause!r}") from error
        except self._ray.exceptions.RayError as error:
            self._lost(member, error, queue)
            return None
        if ref == member.opening:
            member.opening, member.ready = None, True
            member.host, member.last = answer.host, time.monotonic()
            self._opened = self._opened or answer
            self._opened.require_alike(answer)
            return None
        del member.tasks[ref]
        self._losses = 0
        if isinstance(answer, Done):
            now = time.monotonic()
            member.tiles_per_sec, member.last = answer.block.tiles / max(1e-3, now - member.last), now
        return answer

    def _lost(self, member: _Member, error: Exception, queue: BlockCutter | ChunkQueue | None) -> None:
        """Hand a lost actor's work out again; another one is started as soon as its node, or a new one, is seen."""
        again = "files are written" if isinstance(queue, ChunkQueue) else "blocks are predicted"
        log.warning("a worker on %s is lost, and its %s again", member.host, again)
        log.debug("lost: %s", error)
        self._members.remove(member)
        for task in member.tasks.values():
            assert queue is not None
            queue.give_back(cast("Any", task))
        with suppress(Exception):
            self._ray.kill(member.actor)
        self._losses += 1
        if self._losses > MOST_LOSSES * max(1, len(self._ray.nodes())):
            raise BackendError(f"workers are lost before they end a block, the last one on {member.host}: {error}")

    # ---- the end

    def stages(self) -> tuple[StageStats, ...]:
        """See `Pool.stages`; what a lost actor did is not known."""
        closing = [member.actor.close.remote() for member in self._members if member.ready]
        ended, _ = self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S) if closing else ([], [])
        several = []
        for ref in ended:
            with suppress(self._ray.exceptions.RayError):
                several.append(self._ray.get(ref))
        return summed(several, side_by_side=True)

    def end(self) -> None:
        """End all actors, whatever they do."""
        for member in self._members:
            with suppress(Exception):
                self._ray.kill(member.actor)
        self._members.clear()


def on_ray(options: RayOptions) -> Callable[[WorkerJob], Any]:
    """What opens a pool on a cluster, for `driver.predict_on`."""
    return lambda job: ray_pool(job, options)
