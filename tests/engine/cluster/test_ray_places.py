"""Where workers are to be: on GPUs where there are any, else one a node or one a share of its CPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from cervix_engine.backends.device import ANY, Device
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cluster.ray_places import Place, places_on
from cervix_engine.cluster.ray_pool import RayOptions, RayPool
from cervix_engine.errors import BackendError, UsageError
from cervix_engine.run.session import SessionRequest

CPU = Device.parse("cpu")


def node(name: str, *, alive: bool = True, **offers: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerHostname": f"host-{name}", "Alive": alive, "Resources": offers}


def test_one_worker_a_node_that_offers_cpus() -> None:
    nodes = [node("head", memory=1.0), node("a", CPU=8.0), node("b", CPU=2.0), node("gone", alive=False, CPU=4.0)]
    assert places_on(nodes, ANY) == [[], [Place("a", "host-a", 8)], [Place("b", "host-b", 2)]]
    (worker,) = places_on(nodes, ANY)[1]
    assert (worker.takes, worker.workers, worker.threads) == ({"num_cpus": 8}, None, None)


@pytest.mark.parametrize(("cpus", "workers"), [(1, [0, 9, 2]), (2, [0, 4, 1]), (4, [0, 2, 0]), (16, [0, 0, 0])])
def test_a_share_of_a_node_s_cpus(cpus: int, workers: list[int]) -> None:
    nodes = [node("head"), node("a", CPU=9.0), node("b", CPU=2.0)]
    places = places_on(nodes, CPU, cpus=cpus)
    assert [len(there) for there in places] == workers
    for worker in (worker for there in places for worker in there):
        assert (worker.takes, worker.workers, worker.threads) == ({"num_cpus": cpus}, cpus, cpus)


def test_gpus_alone_where_there_are_any() -> None:
    nodes = [node("a", CPU=16.0, GPU=2.0), node("b", CPU=64.0), node("c", CPU=1.0, GPU=4.0)]
    both, none, four = places_on(nodes, ANY, cpus=8)  # a share is of nodes without a GPU
    assert (len(both), none, len(four)) == (2, [], 4)
    assert (both[0].takes, both[0].workers, both[0].threads) == ({"num_cpus": 8, "num_gpus": 1}, 8, None)
    assert (four[0].takes, four[0].workers) == ({"num_cpus": 0, "num_gpus": 1}, 1)
    assert [len(there) for there in places_on(nodes, CPU)] == [1, 1, 1]


@dataclass
class Cluster:
    """What a pool asks of Ray before it has found a place for a worker."""

    listed: list[dict[str, Any]]

    def nodes(self) -> list[dict[str, Any]]:
        return self.listed

    def remote(self, **_: Any) -> Callable[[type], type]:
        return lambda actor: actor


@pytest.mark.parametrize(("cpus", "said"), [(None, "none offers a GPU, or a CPU"), (4, "the 4 CPUs of --ray-cpus")])
def test_a_cluster_that_cannot_compute(fake_bundle: Bundle, cpus: int | None, said: str) -> None:
    job: Any = SimpleNamespace(request=SessionRequest(fake_bundle))
    nodes = [node("head"), *([node("a", CPU=2.0)] if cpus else [])]
    with pytest.raises(BackendError, match=said):
        RayPool(Cluster(nodes), job, RayOptions("auto", cpus)).first()


def test_a_gpu_that_nobody_offers() -> None:
    with pytest.raises(UsageError, match="no node of the cluster offers a GPU"):
        places_on([node("a", CPU=2.0)], Device.parse("cuda"))
