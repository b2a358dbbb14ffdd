"""Workers as actors of a Ray cluster: one a GPU, or one a node that has none, wherever nodes are, come and go.

An actor that is lost, alone or with its node, is replaced, and its blocks are handed out again; whatever it had written
was never journalled. A node that joins gets actors too. What a worker raises itself stops the run, as it would locally.
Ray schedules and reports deaths; all else is `worker.py` and `driver.py`, which know nothing of it.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any, cast

from cervix_engine.cluster.blocks import Block, BlockCutter
from cervix_engine.cluster.driver import Finished, Pool
from cervix_engine.cluster.worker import BlockWorker, Done, Opened, WorkerJob, summed
from cervix_engine.errors import BackendError, CervixError, UsageError
from cervix_engine.extras import require_installed
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
CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class RayOptions:
    """How a run uses a cluster.

    Attributes:
        address: `auto` for the cluster of this machine, else `HOST:PORT` of its head node.
        smallest_block: tiles; blocks grow from there to `BLOCK_S` of work.
    """

    address: str
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

    def close(self) -> tuple[StageStats, ...]:
        return self._worker.close() if self._worker else ()


@dataclass(slots=True, eq=False)
class _Member:
    """An actor as the driver knows it: started, then opening, then ready. `opening` is the answer that it waits for."""

    number: int
    node: str
    host: str
    actor: Any
    workers: int | None
    opening: Any = None
    ready: bool = False
    blocks: dict[Any, Block] = field(default_factory=dict)
    tiles_per_sec: float = 0.0
    last: float = 0.0


@contextmanager
def ray_pool(job: WorkerJob, options: RayOptions) -> Iterator[Pool]:
    """Connect to a cluster, and leave it as it was.

    Raises:
        BackendUnavailableError: Ray is not installed.
        UsageError: there is no cluster at that address.
    """
    require_installed("ray", "ray", work="--ray")
    # Before it is imported: it reports nothing, and it holds no message back to print it once all is over.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0")
    import ray

    with redirect_stdout(cast("IO[str]", _WithoutRay(sys.stdout))):
        _connect(ray, options.address)
        pool = RayPool(ray, job, options)
        try:
            yield pool
        finally:
            pool.end()
            ray.shutdown()


class _WithoutRay:
    """Standard output, without what a thread of Ray's prints there of each death: that goes to the log."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            log.debug("Ray: %s", text.rstrip())
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _connect(ray: Any, address: str) -> None:
    """Raises UsageError where no cluster answers: Ray itself would try for minutes."""
    nobody = f"--ray {address}: no cluster answers there: docs/scaling.md says how to start one"
    try:
        if address != "auto":
            host, _, port = address.removeprefix("ray://").rpartition(":")
            with socket.create_connection((host, int(port)), timeout=CONNECT_S):
                pass
        ray.init(address=address, namespace="cervix", log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        log.debug("no cluster: %s", error)
        raise UsageError(nobody) from error


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
                raise BackendError("the cluster has no node that can compute: it offers neither GPUs nor CPUs")
            # All of them start at once, and one opens.
            if not any(member.opening for member in self._members):
                self._open(self._members[0])
            self._collect(None)
        opened = self._opened
        request = replace(
            self._job.request,
            precision=opened.backend.precision,
            backend=opened.backend.backend,
            batch_size=opened.identity.batch_size,
            keep_batch_size=True,
        )
        self._job = replace(self._job, request=request)
        return opened

    def _places(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Where actors should be and are not: (node, what each takes of it). GPUs alone, where there are any."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        device = self._job.request.device
        on_gpus = device.kind != "cpu" and any(node["Resources"].get("GPU") for node in nodes)
        if device.kind == "cuda" and not on_gpus:
            raise UsageError(f"--device {device}: no node of the cluster offers a GPU")
        places = []
        for node in nodes:
            gpus, cpus = int(node["Resources"].get("GPU", 0)), int(node["Resources"].get("CPU", 0))
            wanted = gpus if on_gpus else min(cpus, 1)
            there = sum(member.node == node["NodeID"] for member in self._members)
            takes = {"num_gpus": 1, "num_cpus": cpus // gpus} if on_gpus and gpus else {"num_cpus": cpus}
            places += [(node, takes)] * (wanted - there)
        return places

    def _start(self, node: dict[str, Any], takes: dict[str, Any]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        actor = self._actor_class.options(scheduling_strategy=where, **takes).remote()
        # On a node with several GPUs, all its actors decode at the same time.
        workers = max(1, takes["num_cpus"]) if "num_gpus" in takes else None
        self._started += 1
        member = _Member(self._started, node["NodeID"], node["NodeManagerHostname"], actor, workers)
        self._members.append(member)
        log.debug("a worker starts on %s", member.host)

    def _open(self, member: _Member) -> None:
        request = self._job.request
        if request.workers == "auto" and member.workers:
            request = replace(request, workers=member.workers)
        member.opening = member.actor.open.remote(replace(self._job, request=request))

    def _look_for_nodes(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S and self._members:
            return
        self._looked = now
        for place in self._places():
            self._start(*place)

    # ---- the blocks

    def results(self, cutter: BlockCutter) -> Iterator[Finished]:
        """See `Pool.results`."""
        while True:
            self._look_for_nodes()
            for member in self._members:
                if not member.ready and member.opening is None:
                    self._open(member)
                self._feed(member, cutter)
            if cutter.exhausted and not any(member.blocks for member in self._members):
                return
            yield from self._collect(cutter)

    def _feed(self, member: _Member, cutter: BlockCutter) -> None:
        while member.ready and len(member.blocks) < IN_FLIGHT:
            # Towards the end blocks get smaller, so that all actors end at about the same time.
            share = cutter.tiles_left // (2 * IN_FLIGHT * len(self._members))
            smallest = self._options.smallest_block
            tiles = min(LARGEST_BLOCK, max(smallest, min(int(member.tiles_per_sec * BLOCK_S), share)))
            block = cutter.cut(tiles)
            if block is None:
                return
            member.blocks[member.actor.predict.remote(block)] = block

    def _collect(self, cutter: BlockCutter | None) -> list[Finished]:
        """Wait for answers, and take all that are there."""
        waiting = {ref: member for member in self._members for ref in (member.opening, *member.blocks) if ref}
        if not waiting:
            time.sleep(LOOK_EVERY_S / 10)
            return []
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=LOOK_EVERY_S)
        more, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        finished = []
        for ref in dict.fromkeys((*ready, *more)):
            member = waiting[ref]
            if member in self._members and (item := self._answer(member, ref, cutter)):
                finished.append(item)
        return finished

    def _answer(self, member: _Member, ref: Any, cutter: BlockCutter | None) -> Finished | None:
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, CervixError):
                raise error.cause from None
            raise BackendError(f"a worker on {member.host} failed: {error.cause!r}") from error
        except self._ray.exceptions.RayError as error:
            self._lost(member, error, cutter)
            return None
        if ref == member.opening:
            member.opening, member.ready = None, True
            member.host, member.last = answer.host, time.monotonic()
            self._require_alike(answer)
            return None
        del member.blocks[ref]
        now, self._losses = time.monotonic(), 0
        member.tiles_per_sec, member.last = answer.block.tiles / max(1e-3, now - member.last), now
        return Finished(answer, member.host, member.number)

    def _require_alike(self, opened: Opened) -> None:
        if self._opened is None:
            self._opened = opened
            return
        self._opened.identity.check(
            opened.identity,
            what=f"{self._opened.host} computes",
            remedy=f"{opened.host} would answer differently, so leave one kind of node out of the cluster",
        )

    def _lost(self, member: _Member, error: Exception, cutter: BlockCutter | None) -> None:
        """Hand a lost actor's blocks out again; another one is started as soon as its node, or a new one, is seen."""
        log.warning("a worker on %s is lost, and its blocks are predicted again", member.host)
        log.debug("lost: %s", error)
        self._members.remove(member)
        for block in member.blocks.values():
            assert cutter is not None
            cutter.give_back(block)
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
