"""Where the workers of a run are to be on a Ray cluster, and what each takes of its node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cervix_engine.backends.device import Device
from cervix_engine.errors import UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is to be.

    Attributes:
        node, host: Ray's name of the node, and that of the machine.
        cpus: that it takes of the node.
        on_gpu: whether it takes a GPU too.
        shares: whether there may be others on the node, so that it decodes with its own CPUs alone.
    """

    node: str
    host: str
    cpus: int
    on_gpu: bool = False
    shares: bool = False

    @property
    def takes(self) -> dict[str, int]:
        """As Ray's options say it."""
        return {"num_cpus": self.cpus, **({"num_gpus": 1} if self.on_gpu else {})}

    @property
    def workers(self) -> int | None:
        """Decode processes that it may have; None where it has the node to itself."""
        return max(1, self.cpus) if self.shares else None

    @property
    def threads(self) -> int | None:
        """Inference threads on the CPU; None where it has the node to itself, or a GPU."""
        return self.cpus if self.shares and not self.on_gpu else None


def places_on(nodes: Iterable[dict[str, Any]], device: Device, *, cpus: int | None = None) -> list[list[Place]]:
    """Where workers are to be on each node that lives: one a GPU; where none has any, one a node, or one a share.

    Args:
        nodes: as `ray.nodes()` tells of them.
        device: that is asked for; `cpu` leaves GPUs alone.
        cpus: of each worker on a node without a GPU; None takes all that the node offers.

    Raises:
        UsageError: a GPU is asked for, and none is offered.
    """
    alive = [node for node in nodes if node["Alive"]]
    on_gpus = device.kind != "cpu" and any(_offers(node, "GPU") for node in alive)
    if device.kind == "cuda" and not on_gpus:
        raise UsageError(f"--device {device}: no node of the cluster offers a GPU")
    return [_on_gpus(node) if on_gpus else _on_cpus(node, cpus) for node in alive]


def _on_gpus(node: dict[str, Any]) -> list[Place]:
    gpus = _offers(node, "GPU")
    return [_place(node, _offers(node, "CPU") // gpus, on_gpu=True, shares=True) for _ in range(gpus)]


def _on_cpus(node: dict[str, Any], each: int | None) -> list[Place]:
    cpus = _offers(node, "CPU")
    if each is None:
        return [_place(node, cpus)] if cpus else []
    return [_place(node, each, shares=True) for _ in range(cpus // each)]


def _place(node: dict[str, Any], cpus: int, **how: bool) -> Place:
    return Place(node["NodeID"], node["NodeManagerHostname"], cpus, **how)


def _offers(node: dict[str, Any], what: str) -> int:
    return int(node["Resources"].get(what, 0))
