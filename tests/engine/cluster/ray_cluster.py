"""A Ray cluster on loopback, in a process of its own, that ends with it: `python ray_cluster.py NODES`.

Its head offers nothing; each of its nodes one CPU. It says its address, and then answers each line of standard input:
`actors` with the process ids of the run's actors; `lose` by killing a node's raylet and letting another node join. At
the end of its input, all ends.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

TESTS = Path(__file__).parents[2]
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    # A lost node is known at once, and not after half a minute.
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class RayCluster:
    """The process; `with` starts and ends it."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self.environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(TESTS)}

    def __enter__(self) -> RayCluster:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._nodes)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address: str = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):  # Ray may print too
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError("the cluster's process has ended")


def _serve(count: int) -> None:
    from ray.cluster_utils import Cluster

    def say(answer: Any) -> None:
        print("answer", json.dumps(answer), flush=True)  # noqa: T201 - to whoever started it

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1, wait=False) for _ in range(count)]
    cluster.wait_for_nodes()
    say(cluster.address)
    for line in sys.stdin:
        if line.strip() == "actors":
            say(_actors({_raylet(node).pid for node in nodes}))
        if line.strip() == "lose":
            lost = nodes.pop(random.randrange(len(nodes)))
            _raylet(lost).kill()
            cluster.remove_node(lost, allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1, wait=False))
            say("lost")
    cluster.shutdown()


def _raylet(node: Any) -> subprocess.Popen[bytes]:
    (raylet,) = node.all_processes["raylet"]
    process: subprocess.Popen[bytes] = raylet.process
    return process


def _actors(raylets: set[int]) -> list[int]:
    """The actors among these processes' children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent in raylets and name.startswith(b"ray::RemoteWorker"):
            found.append(int(folder.name))
    return found


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
