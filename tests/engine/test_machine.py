"""How many cores a process may use where its control group has a quota, by folders as the kernel lays them out."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from cervix_engine.machine import cpu_quota, usable_cpus


def laid_out(scratch: Path, groups: str, files: dict[str, str]) -> float:
    """The quota where a process is in these groups, and these files lie below the mount."""
    (scratch / "groups").write_text(groups)
    for name, text in files.items():
        file = scratch / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return cpu_quota(groups=scratch / "groups", mounts=scratch / "cgroup")


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


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(groups=tmp_path / "none", mounts=tmp_path) == math.inf


def test_a_process_that_is_bound_to_one_core_uses_one() -> None:
    cores = os.sched_getaffinity(0)
    assert 1 <= usable_cpus() <= len(cores)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, cores)
