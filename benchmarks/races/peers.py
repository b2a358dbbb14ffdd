"""From files to predictions, every peer side by side in one run, over the same tiles.

    python -m benchmarks.races.peers TILES --model models/cervix --count 512 --rounds 5 --json peers.json

Keras's folder pipeline with `predict`, and over the same session a plain OpenCV loop, SPDL's pipeline and a pool of
processes; then the last three once more, on JPEGs of 224 px, with a small network whose inference costs about as much
as decoding, which is where overlap counts. The engine's model alone against `benchmark_app`: `model_loop.py`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.common import Rate, describe, interleave, race_options, sample_tiles
from benchmarks.races.contenders import (
    Run,
    encode_anew,
    engine,
    keras_folder,
    matched_network,
    plain_loop,
    process_pool,
    spdl,
    tile_files,
)
from cervix_engine.backends import Backend, Combination, open_backend, open_graph
from cervix_engine.backends.selection import replay_golden, select
from cervix_engine.bench.measure import Gate, Meter
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.files import sha256_bytes
from cervix_engine.machine import usable_cpus
from cervix_engine.tiles.preprocess import preprocess

ENGINE = "cervix-batch"
SMALL_SIDE = 224


def open_small(model: bytes) -> Backend:
    """A network that belongs to no bundle, on ONNX Runtime's own kernels."""
    return open_graph(model, combination=Combination("onnxruntime-cpu", "fp32"), sha256=sha256_bytes(model))


def from_files(tiles: Path, bundle: Bundle, backend: Backend, *, batch_size: int) -> dict[str, Run]:
    """The contenders that take any backend."""
    return {
        ENGINE: engine(tiles, bundle, backend, batch_size=batch_size),
        "plain OpenCV loop, same session": plain_loop(tiles, backend, contract=bundle.contract, batch_size=batch_size),
        "SPDL pipeline, same session": spdl(tiles, backend, contract=bundle.contract, batch_size=batch_size),
        "pool of processes, same session": process_pool(
            tiles, backend, contract=bundle.contract, batch_size=batch_size
        ),
    }


def prepare_rate(tiles: Path, bundle: Bundle) -> float:
    """Tiles per second that all cores together would decode, as far as one core tells."""
    data = [path.read_bytes() for path in tile_files(tiles)[:64]]

    def work() -> int:
        for item in data:
            preprocess(item, contract=bundle.contract)
        return len(data)

    return Meter(Gate(tolerance=0.2)).rate(work).tiles_per_sec * usable_cpus()


@click.command()
@race_options
@click.option("--keras/--no-keras", default=True, help="Whether Keras takes part.")
@click.option("--small-count", default=3600, show_default=True, help="Tiles for the small network.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures there.")
def main(
    tiles: Path,
    model: Path,
    precision: str,
    count: int,
    rounds: int,
    batch_size: int,
    keras: bool,
    small_count: int,
    report: Path | None,
) -> None:
    """Race the engine against its peers."""
    bundle = Bundle.open(model)
    combination = select(bundle, precision=precision).combination  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "tiles"
        sample_tiles(tiles, sample, count=count)
        with open_backend(bundle, combination=combination) as backend:
            replay_golden(bundle, backend, batch_size=batch_size)
            runs = from_files(sample, bundle, backend, batch_size=batch_size)
            if keras:
                runs["Keras folder pipeline + predict"] = keras_folder(sample, model, batch_size=batch_size)
            large = interleave(runs, rounds=rounds)
        many = Path(folder) / "many" / "tiles"
        sample_tiles(tiles, many, count=small_count)
        encode_anew(many, side=SMALL_SIDE, suffix=".jpg")
        network = matched_network(bundle.contract, prepare=prepare_rate(many, bundle), open_model=open_small)
        with open_small(network) as backend:
            small = interleave(from_files(many, bundle, backend, batch_size=batch_size), rounds=rounds)
    races = {f"the bundle's network, {precision}": large, "a network that costs about as much as decoding": small}
    publish(races, {"tiles": count, "small_tiles": small_count, "batch_size": batch_size, "rounds": rounds}, report)


def publish(races: dict[str, dict[str, Rate]], setting: dict[str, int], report: Path | None) -> None:
    """Print the races, and write them."""
    figures: dict[str, Any] = {"benchmark": "peers", **describe(), **setting, "races": {}}
    for race, rates in races.items():
        print(race)
        ours = rates[ENGINE].median
        for name, rate in rates.items():
            print(f"  {name:36} {rate}   engine ÷ it: {ours / rate.median:.2f}")
        figures["races"][race] = {name: rate.to_json() for name, rate in rates.items()}
    if report:
        report.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
