"""A graph as it is converted against its folded form: loaded, run, and built into an engine, in turn.

python -m benchmarks.models.folded_graph BEFORE.onnx --rounds 5
"""

from __future__ import annotations

import json
import time
from collections import Counter
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from benchmarks.common import Rate, describe, interleave, machine
from benchmarks.races.model_loop import engine_loop
from cervix_engine.backends import Combination, objection, open_graph
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_export.engines.builder import EngineBuilder
from cervix_export.engines.plan import EngineOptions, EnginePlan
from cervix_export.graphs.compute import answers
from cervix_export.graphs.fold import folded

SECONDS = 4
Rates = dict[str, Rate]
RUNTIMES = ("onnxruntime-cpu", "openvino")
RTX = EnginePlan("tensorrt-rtx", EngineOptions(compute_capabilities=("8.0", "8.9")))


@click.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("-b", "--batch-size", default=16, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(before: Path, rounds: int, batch_size: int, json_file: Path | None) -> None:
    """Compare the graph BEFORE with its folded form, on random pixels."""
    models = {"before": onnx.load_model(before)}
    models["after"] = folded(models["before"])
    _, height, width, _ = (axis.dim_value for axis in models["before"].graph.input[0].type.tensor_type.shape.dim)
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, height, width, 3), np.uint8)
    absdiff = float(np.abs(answers(models["after"], pixels) - answers(models["before"], pixels)).max())
    contract = ModelContract(classes=SIPAKMED_CLASSES, input_size=(height, width))
    graphs = {name: model.SerializeToString() for name, model in models.items()}
    rates = {**_runtimes(graphs, pixels, rounds), **_builds(graphs, contract, rounds)}
    nodes = {name: Counter(node.op_type for node in model.graph.node) for name, model in models.items()}
    print(f"batch {batch_size}, {rounds} interleaved rounds; {machine()}; answers move by {absdiff:.2g}")
    for name, kinds in nodes.items():
        print(f"  {name:7} {kinds.total()} nodes, {len(graphs[name]) / 1e6:.1f} MB, of them {dict(kinds)}")
    ratios = {what: of["after"].median / of["before"].median for what, of in rates.items()}
    for what, of in rates.items():
        spread = ", ".join(f"{name} {rate.median:.3g} ({rate.low:.3g} to {rate.high:.3g})" for name, rate in of.items())
        print(f"  {what:32} after ÷ before {ratios[what]:.3f}: {spread}")
    if json_file:
        report = {**describe(), "benchmark": "folded_graph", "max_absdiff": absdiff, "ratios": ratios}
        json_file.write_text(json.dumps({**report, "nodes": {name: dict(kinds) for name, kinds in nodes.items()}}))


def _runtimes(graphs: dict[str, bytes], pixels: Any, rounds: int) -> dict[str, Rates]:
    """Loads and tiles a second, before and after, by runtime."""
    found = {}
    for runtime in (name for name in RUNTIMES if objection(name, "fp32") is None):
        way = Combination(runtime, "fp32")
        loads = {name: partial(_loads_per_sec, graph, way, pixels[:1]) for name, graph in graphs.items()}
        found[f"{runtime}: loads a second"] = interleave(loads, rounds=rounds)
        rates = {name: partial(_tiles_per_sec, graph, way, pixels) for name, graph in graphs.items()}
        found[f"{runtime}: tiles a second"] = interleave(rates, rounds=rounds)
    return found


def _loads_per_sec(graph: bytes, way: Combination, pixels: Any) -> float:
    began = time.perf_counter()
    with open_graph(graph, combination=way, sha256="") as backend:
        backend.infer(pixels)  # OpenVINO compiles at the first batch
    return 1 / (time.perf_counter() - began)


def _tiles_per_sec(graph: bytes, way: Combination, pixels: Any) -> float:
    """Of a model that was opened for this round: where its memory happens to lie moves its rate by a hundredth."""
    with open_graph(graph, combination=way, sha256="") as backend:
        backend.infer(pixels)
        return engine_loop(backend, pixels, SECONDS)


def _builds(graphs: dict[str, bytes], contract: ModelContract, rounds: int) -> dict[str, Rates]:
    """Engines built a second, before and after, ahead of time."""
    if find_spec("tensorrt_rtx") is None:
        return {}
    builder = EngineBuilder.for_plan(RTX)

    def builds_per_sec(graph: bytes) -> float:
        began = time.perf_counter()
        builder.build(graph, source="model.onnx", precision="fp32", contract=contract)
        return 1 / (time.perf_counter() - began)

    builds = {name: partial(builds_per_sec, graph) for name, graph in graphs.items()}
    return {"tensorrt-rtx: builds a second": interleave(builds, rounds=rounds)}


if __name__ == "__main__":
    main()
