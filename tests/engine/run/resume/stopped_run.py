"""A run that can be told to fail, and what its table must be."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.backends import Backend
from cervix_engine.errors import InferenceError, OutputError
from cervix_engine.run.batch import BatchConfig, Progress, no_progress, predict_folder
from cervix_engine.run.record import RunRecord
from cervix_engine.run.shards import ShardSize
from engine.run.support import FINISHED, SpyBackend, beside, run_setup, work_folder

FULL = OutputError("no space left on device")
TILES, BATCH, SHARD = 50, 2, 6  # 25 batches in 9 shards, the last one of 1 batch
BATCHES, BATCHES_A_SHARD = 25, 3


@dataclass
class Run:
    """A run of the tiny bundle over 50 tiles, which can be told to fail; `spy` is what its backend saw."""

    config: BatchConfig
    shard: ShardSize = ShardSize(SHARD)  # noqa: RUF009 - frozen
    spy: SpyBackend | None = None

    @property
    def out(self) -> Path:
        return self.config.out

    @property
    def folder(self) -> Path:
        return work_folder(self.out)

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def __call__(
        self,
        *,
        fail: dict[int, BaseException] | None = None,
        stop_at: str = "",
        error: BaseException = FULL,
        progress: Progress = no_progress,
        **changes: Any,
    ) -> RunRecord:
        def spied(backend: Backend) -> SpyBackend:
            self.spy = SpyBackend(backend, fail=fail)
            return self.spy

        setup = run_setup(around=spied, shard=self.shard, stop_at=stop_at, error=error)
        return predict_folder(replace(self.config, **changes), progress=progress, setup=setup)

    def stop_before_the_commit(self, **changes: Any) -> None:
        with pytest.raises(OutputError, match="no space"):
            self(stop_at="commit", **changes)

    @property
    def computed(self) -> int:
        assert self.spy is not None
        return len(self.spy.digests)

    def interrupt(self, at: int = 13, **changes: Any) -> None:
        """Fail in batch `at`: 13 leaves the four shards of batches 0 to 11, and one of batch 12."""
        with pytest.raises(InferenceError, match="out of memory"):
            self(fail={at: InferenceError("out of memory")}, **changes)

    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.csv"))

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line)["entry"] for line in self.journal.read_text().splitlines()]

    @property
    def stored(self) -> int:
        """Batches that are safe."""
        return sum(entry.get("batches", 0) for entry in self.entries())


def assert_finished(run: Run, table: bytes) -> None:
    assert run.out.read_bytes() == table
    assert beside(run.out) == FINISHED
    report = RunRecord.load(run.config.record_path)
    assert report.found == report.ok + report.failed == TILES
