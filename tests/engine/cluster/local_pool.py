"""A pool whose workers are threads of this process: the driver and the workers without any cluster between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cervix_engine.cluster.blocks import Block, BlockCutter, ChunkQueue
from cervix_engine.cluster.driver import Finished, OpenPool, Pool
from cervix_engine.cluster.worker import BlockWorker, Done, Opened, WorkerJob, summed
from cervix_engine.run.assembly.chunks import WrittenChunk
from cervix_engine.run.stream.stats import StageStats

IN_FLIGHT = 3


class LostError(Exception):
    """Stands for the death of a worker: what it had is predicted again."""


@dataclass
class LocalPool:
    """Two workers, each with up to three blocks.

    Attributes:
        workers: opened.
        block_tiles: how large blocks are.
        lose: raises LostError where what a worker has done is to get lost on its way back.
    """

    workers: list[BlockWorker]
    block_tiles: int
    lose: Callable[[Done | WrittenChunk], None]
    closed: bool = field(default=False, init=False)

    def first(self) -> Opened:
        return self.workers[0].opened()

    def results(self, cutter: BlockCutter) -> Iterator[Finished]:
        with ThreadPoolExecutor(IN_FLIGHT * len(self.workers)) as threads:
            given: dict[Future[Done], tuple[int, Block]] = {}
            while True:
                for number, worker in enumerate(self.workers):
                    while sum(at == number for at, _ in given.values()) < IN_FLIGHT and (
                        block := cutter.cut(self.block_tiles)
                    ):
                        given[threads.submit(worker.predict, block)] = number, block
                if not given:
                    return
                ready, _ = wait(given, return_when=FIRST_COMPLETED)
                for answer in ready:
                    number, block = given.pop(answer)
                    try:
                        self.lose(answer.result())
                    except LostError:
                        cutter.give_back(block)
                        continue
                    yield Finished(answer.result(), f"node{number}", number)

    def write_chunks(self, chunks: ChunkQueue) -> Iterator[WrittenChunk]:
        number = 0
        while chunk := chunks.cut(0):
            worker = self.workers[number % len(self.workers)]
            number += 1
            try:
                self.lose(written := worker.write_chunk(chunk))
            except LostError:
                chunks.give_back(chunk)
                continue
            yield written

    def stages(self) -> tuple[StageStats, ...]:
        self.closed = True
        return summed([worker.close() for worker in self.workers], side_by_side=True)


def local_pool(
    *,
    workers: int = 2,
    block_tiles: int = 8,
    lose: Callable[[Done | WrittenChunk], None] = lambda _: None,
    tell: Callable[[WorkerJob], WorkerJob] = lambda job: job,
) -> OpenPool:
    """What opens such a pool, for `predict_on`; `tell` may tell workers of another job."""

    @contextmanager
    def opened(job: WorkerJob) -> Iterator[Pool]:
        told = replace(tell(job), folder=job.folder)
        pool = LocalPool([BlockWorker(told) for _ in range(workers)], block_tiles, lose)
        try:
            yield pool
        finally:
            if not pool.closed:
                pool.stages()

    return opened
