"""The model alone: the engine's inference loop against OpenVINO's `benchmark_app` on the same file, interleaved.

python -m benchmarks.races.model_loop --model models/cervix --precision fp32 --rounds 5 --json model_fp32.json
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.common import interleave, json_option, machine, publish
from cervix_engine.backends import Backend, open_backend
from cervix_engine.backends.openvino import float_kernels
from cervix_engine.backends.selection import select
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.machine import usable_cpus


def engine_loop(backend: Backend, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], seconds: float) -> float:
    """Tiles per second of the engine's backend over about so many seconds."""
    batches, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        backend.infer(pixels)
        batches += 1
    return batches * len(pixels) / (time.perf_counter() - began)


def benchmark_app(model: Path, shape: tuple[int, ...], precision: str, hint: str, seconds: int) -> float:
    """Tiles per second that OpenVINO's own `benchmark_app` reports for the same file."""
    program = shutil.which("benchmark_app", path=str(Path(sys.executable).parent)) or "benchmark_app"
    command = [program, "-m", str(model), "-d", "CPU", "-hint", hint, "-t", str(seconds), "-shape"]
    command += [str(list(shape)).replace(" ", ""), "-infer_precision", float_kernels(precision)]  # type: ignore[arg-type]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Throughput:\s+([\d.]+) FPS", output)
    if found is None:
        raise click.ClickException(f"benchmark_app printed no throughput:\n{output[-2000:]}")
    return float(found[1])


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default="models/cervix", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=15, show_default=True, help="Seconds of a contender in a round.")
@click.option("-b", "--batch-size", default=32, show_default=True)
@json_option
def main(model: Path, precision: str, rounds: int, seconds: int, batch_size: int, report: Path | None) -> None:
    """Compare model-only rates on random pixels."""
    bundle = Bundle.open(model)
    combination = select(bundle, precision=precision).combination  # type: ignore[arg-type]
    shape = (batch_size, *bundle.contract.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = bundle.root / combination.artefact
    with open_backend(bundle, combination=combination) as backend:
        ours = f"{combination.backend}, {precision}"
        rates = interleave(
            {
                ours: lambda: engine_loop(backend, pixels, seconds),
                "benchmark_app, latency hint": lambda: benchmark_app(file, shape, precision, "latency", seconds),
                "benchmark_app, throughput hint": lambda: benchmark_app(file, shape, precision, "throughput", seconds),
            },
            rounds=rounds,
        )
    print(f"batch {batch_size}, {usable_cpus()} threads, {rounds} interleaved rounds of {seconds} s; {machine()}")
    best = max(rate.median for name, rate in rates.items() if name != ours)
    for name, rate in rates.items():
        print(f"  {name:32} {rate}")
    print(f"  ratio to the best of benchmark_app {rates[ours].median / best:.2f}")
    figures = {"benchmark": "model_loop", "precision": precision, "batch_size": batch_size, "benchmark_app": best}
    publish(
        report, {**figures, "engine": rates[ours].median, "rates": {n: rate.to_json() for n, rate in rates.items()}}
    )


if __name__ == "__main__":
    main()
