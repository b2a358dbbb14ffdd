"""How many cores a process may use where its control group has a quota, by folders as the kernel lays them out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cervix_engine.machine import cpu_quota, memory_left, usable_cpus


def laid_out(scratch: Path, groups: str, files: dict[str, str], *, asked: Callable[..., float] = cpu_quota) -> float:
    """What is `asked` where a process is in these groups, and these files lie below the mount."""
    (scratch / "groups").write_text(groups)
    for name, text in files.items():
        file = scratch / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return asked(groups=scratch / "groups", mounts=scratch / "cgroup")


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("0::/job/step\n", {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"}, 1.5),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000\n", "job/step/cpu.max": "50000 100000\n"}, 0.5),
        # In a container, the path is that of the host, and the mount is the container's own group.
        ("0::/docker/4f2a\n", {"cpu.max": "400000 100000\n"}, 4.0),
        (
            "4:memory:/a\n3:cpu,cpuacct:/docker/4f2a\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "350000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            3.5,
        ),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ],
)
def test_a_quota_is_read_from_every_group_above(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float
) -> None:
    assert laid_out(tmp_path, groups, files) == quota


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/\n", {"memory.max": "1000\n", "memory.stat": "anon 300\nfile 650\nshmem 50\n"}, 650),
        ("0::/\n", {"memory.max": "max\n", "memory.stat": "anon 300\nfile 50\nshmem 0\n"}, math.inf),
        ("0::/\n", {}, math.inf),
        (
            "0::/job/step\n",
            {
                "job/memory.max": "1000\n",
                "job/memory.stat": "anon 900\nfile 0\nshmem 0\n",
                "job/step/memory.max": "500\n",
                "job/step/memory.stat": "anon 100\nfile 0\nshmem 0\n",
            },
            100,
        ),
        (
            "4:memory:/docker/4f2a\n0::/\n",
            {
                "memory/memory.limit_in_bytes": "1000\n",
                "memory/memory.stat": "rss 10\ntotal_cache 600\ntotal_rss 250\ntotal_shmem 30\n",
            },
            720,
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, math.inf),
    ],
)
def test_what_is_left_of_a_memory_limit(tmp_path: Path, groups: str, files: dict[str, str], left: float) -> None:
    assert laid_out(tmp_path, groups, files, asked=memory_left) == left


@pytest.mark.parametrize("asked", [cpu_quota, memory_left])
def test_without_control_groups_there_is_no_limit(tmp_path: Path, asked: Callable[..., float]) -> None:
    assert asked(groups=tmp_path / "none", mounts=tmp_path) == math.inf


def test_a_process_that_is_bound_to_one_core_uses_one() -> None:
    cores = os.sched_getaffinity(0)
    assert 1 <= usable_cpus() <= len(cores)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, cores)
