"""What a Ray cluster costs on one node, and what it gives on four: rates of the stream, in rounds by turns.

    python -m benchmarks.scale.ray_nodes overhead TILES --model BUNDLE --rounds 3
    python -m benchmarks.scale.ray_nodes scaling --model BUNDLE_OF_FAKE --rounds 3

`overhead` runs real tiles here, and on a cluster of one node of this machine. `scaling` has a model that takes a set
time for a batch and reads no tile, so that four nodes fit on any machine. Both leave the start out, as a run's own rate
does; that of the workers behind the first counts. The bundle of `scaling` is one whose golden answers are the fake
backend's, as the tests make (`make_fake_bundle`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.common import Rate, describe, interleave
from benchmarks.scale.set_time import SetTimeStep, nothing
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cluster.driver import predict_on
from cervix_engine.cluster.ray_pool import RayOptions, on_ray
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.journal import RunIdentity
from cervix_engine.run.session import Chosen, SessionRequest
from cervix_engine.run.stream.steps import TileSteps

NODES, BATCH, BATCH_S = 4, 32, 0.1


class Cluster:
    """Nodes of one CPU each on this machine, and a head that offers none."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self._cluster: Any = RayCluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        for _ in range(nodes):
            self._cluster.add_node(num_cpus=1)
        self.address: str = self._cluster.address

    def close(self) -> None:
        self._cluster.shutdown()


def rate_of(config: BatchConfig, setup: RunSetup, alike: set[RunIdentity] | None = None) -> float:
    """Tiles per second of the stream, start left out; `alike` gets what the run is."""
    record = predict_folder(config, setup=setup)
    if alike is not None:
        alike.add(record.identity)
    return record.tiles_per_sec


def on_nodes(nodes: int, config: BatchConfig, setup: RunSetup, alike: set[RunIdentity] | None = None) -> float:
    with closing(Cluster(nodes)) as cluster:
        options = RayOptions(cluster.address, smallest_block=4 * BATCH)
        there = RunSetup(setup.choose, steps=setup.steps, predict=predict_on(on_ray(options)))
        return rate_of(config, there, alike)


def choose_set_time(_: SessionRequest) -> Chosen:
    """A model that takes a set time for a batch."""
    return Chosen(FakeBackend(seconds_per_batch=BATCH_S))


def tell(rates: dict[str, Rate], report: Path | None, *, over: tuple[str, str]) -> None:
    for name, rate in rates.items():
        print(f"{name:<24} {rate}")
    above, below = over
    ratio = rates[above].median / rates[below].median
    print(f"{above} ÷ {below}: {ratio:.3f}")
    if report:
        figures = {"benchmark": "ray_nodes", **describe(), "ratio": ratio}
        figures["rates"] = {name: rate.to_json() for name, rate in rates.items()}
        report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


_ROUNDS = click.option("--rounds", default=3, show_default=True)
_JSON = click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures there.")


@click.group()
def main() -> None:
    """Runs on a cluster, against runs without one."""


@main.command()
@click.argument("tiles", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), required=True)
@click.option("-b", "--batch-size", default=BATCH, show_default=True)
@_ROUNDS
@_JSON
def overhead(tiles: Path, model: Path, batch_size: int, rounds: int, report: Path | None) -> None:
    """One node against this machine without Ray."""
    with tempfile.TemporaryDirectory() as name:
        config = BatchConfig(tiles, Path(name) / "preds.csv", model, batch_size=batch_size, overwrite=True)
        alike: set[RunIdentity] = set()
        contenders: dict[str, Callable[[], float]] = {
            "here": partial(rate_of, config, RunSetup(), alike),
            "one node": partial(on_nodes, 1, config, RunSetup(), alike),
        }
        tell(interleave(contenders, rounds=rounds), report, over=("here", "one node"))
        if len(alike) > 1:  # another runtime, precision, or number of threads
            raise click.ClickException(f"unlike runs were compared: {alike}")


@main.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    required=True,
    help="A bundle whose golden answers are the fake backend's.",
)
@click.option("--tiles", "count", default=40_000, show_default=True)
@_ROUNDS
@_JSON
def scaling(model: Path, count: int, rounds: int, report: Path | None) -> None:
    """Four nodes against one, with a model of set time."""
    Bundle.open(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tiles"
        folder.mkdir()
        for index in range(count):
            (folder / f"{index:06d}.png").touch()
        setup = RunSetup(choose_set_time, steps=TileSteps(nothing, SetTimeStep(0.0)))
        config = BatchConfig(folder, Path(name) / "preds.csv", model, batch_size=BATCH, workers=1, overwrite=True)
        contenders: dict[str, Callable[[], float]] = {
            "one node": partial(on_nodes, 1, config, setup),
            "four nodes": partial(on_nodes, NODES, config, setup),
        }
        tell(interleave(contenders, rounds=rounds), report, over=("four nodes", "one node"))


if __name__ == "__main__":
    main()
