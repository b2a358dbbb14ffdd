"""The model alone in every precision that this machine runs, interleaved; and what OpenVINO's kernels compute in.

python -m benchmarks.models.precisions --model models/cervix --rounds 5
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.common import interleave, machine
from benchmarks.races.model_loop import engine_loop
from cervix_engine.backends import open_backend
from cervix_engine.backends.openvino import OpenVinoBackend
from cervix_engine.backends.survey import survey
from cervix_engine.bundle.bundle import Bundle

SECONDS = 5


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default="models/cervix", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("-b", "--batch-size", default=32, show_default=True)
def main(model: Path, rounds: int, batch_size: int) -> None:
    """Compare model-only rates on random pixels."""
    bundle = Bundle.open(model)
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, *bundle.contract.input_size, 3), np.uint8)
    with ExitStack() as stack:
        loaded = {
            f"{item.backend}, {item.precision}": stack.enter_context(open_backend(bundle, combination=item))
            for item in (way.combination for way in survey(bundle).runnable)
        }
        rates = interleave(
            {name: partial(engine_loop, backend, pixels, SECONDS) for name, backend in loaded.items()},
            rounds=rounds,
        )
        print(f"batch {batch_size}, {rounds} interleaved rounds of {SECONDS} s; {machine()}")
        for name, backend in loaded.items():
            kernels = Counter(backend.kernel_precisions()) if isinstance(backend, OpenVinoBackend) else {}
            told = ", ".join(f"{count} layers in {kind}" for kind, count in kernels.items())
            print(f"  {name:24} {rates[name]}  {told}")


if __name__ == "__main__":
    main()
