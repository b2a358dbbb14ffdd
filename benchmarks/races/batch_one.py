"""One tile at a time: how long an answer takes, against a plain ONNX Runtime session on the same file, interleaved.

    python -m benchmarks.races.batch_one --model models/cervix --precision fp32 --json batch_one.json

The engine's own ONNX Runtime backend is what is compared; the combination that `cervix-batch` would take in this
precision, where it is another one, stands beside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import describe
from cervix_engine.backends import Combination, open_backend
from cervix_engine.backends.selection import select
from cervix_engine.bundle.bundle import Bundle

PLAIN = "plain onnxruntime, session.run"
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def plain_session(file: Path) -> Callable[[Pixels], Any]:
    """What one writes first: a session with its defaults."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})


def latencies(calls: dict[str, Callable[[Pixels], Any]], pixels: Pixels, *, rounds: int, each: int) -> dict[str, Any]:
    """Percentiles of the seconds of single calls, by name, in interleaved rounds of `each` calls that count.

    One round more warms up. Nor does the first call of a turn count: the last one's threads still spin for a while.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            for turn in range(each + 1):
                began = time.perf_counter()
                call(pixels)
                if number and turn:
                    seconds[name].append(time.perf_counter() - began)
    return {name: np.percentile(taken, (50, 90, 95, 99)) for name, taken in seconds.items()}


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default="models/cervix", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--rounds", default=10, show_default=True)
@click.option("--each", default=40, show_default=True, help="Tiles a round.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures there.")
def main(model: Path, precision: str, rounds: int, each: int, report: Path | None) -> None:
    """Compare the time of single tiles."""
    bundle = Bundle.open(model)
    same = Combination("onnxruntime-cpu", precision)  # type: ignore[arg-type]
    chosen = select(bundle, precision=precision).combination  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (1, *bundle.contract.input_size, 3), np.uint8)
    with ExitStack() as stack:
        calls: dict[str, Callable[[Pixels], Any]] = {PLAIN: plain_session(bundle.root / same.artefact)}
        for item in dict.fromkeys([same, chosen]):
            backend = stack.enter_context(open_backend(bundle, combination=item))
            calls[f"engine, {item.backend}"] = backend.infer
        taken = latencies(calls, pixels, rounds=rounds, each=each)
    print(f"batch 1, {precision}, {rounds} interleaved rounds of {each} tiles")
    for name, (p50, p90, p95, p99) in taken.items():
        print(
            f"  {name:32} p50 {1e3 * p50:7.2f}  p90 {1e3 * p90:7.2f}  p95 {1e3 * p95:7.2f}  p99 {1e3 * p99:7.2f} ms"
            f"   p50 / plain {p50 / taken[PLAIN][0]:.2f}, p99 / plain {p99 / taken[PLAIN][3]:.2f}"
        )
    if report:
        figures = {
            "benchmark": "batch_one",
            **describe(),
            "precision": precision,
            "ms": {
                name: dict(zip(("p50", "p90", "p95", "p99"), (1e3 * row).tolist(), strict=True))
                for name, row in taken.items()
            },
        }
        report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
