"""How much of what model and preprocessing allow on the same cores is left end to end.

    python -m benchmarks.stream.efficiency TILES --model models/cervix --count 512 --rounds 5 --json efficiency.json

On one set of cores, preparing and inferring a tile take turns, so no run from files can exceed
1/(1/model + 1/preparation), where each alone has all the cores. All three are measured interleaved in one run.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from benchmarks.common import Rate, describe, interleave, race_options, sample_tiles
from cervix_engine.bench.measure import Gate, Meter
from cervix_engine.bench.setup import BenchSetup, usable_tiles
from cervix_engine.bench.stages import decoding, end_to_end, inferring
from cervix_engine.bench.steps import PipelineSteps
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.run.session import Session, SessionRequest, open_session
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.sources.folder import Folder

# One round of a figure, in `interleave`'s turn.
ONCE = Meter(Gate(tolerance=0.9, window=2, max_rounds=2, round_s=1.0))


@click.command()
@race_options
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures there.")
def main(
    tiles: Path, model: Path, precision: str, count: int, rounds: int, batch_size: int, report: Path | None
) -> None:
    """Measure the stream's efficiency."""
    bundle = Bundle.open(model)
    request = SessionRequest(bundle, precision=precision, batch_size=batch_size)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample_tiles(tiles, folder / "tiles", count=count)
        with open_session(request, list_tiles=lambda: discover(Folder(folder / "tiles"), spool=folder)) as session:
            rates = measured(session, count=count, rounds=rounds, out=folder / "preds.csv")
    publish(rates, report)


def measured(session: Session, *, count: int, rounds: int, out: Path) -> dict[str, Rate]:
    """Each part alone and all of them, in turns."""
    usable = usable_tiles(session.listing, contract=session.contract, count=count)
    setup = BenchSetup.of(session, usable, out=out)
    steps = PipelineSteps.real(setup)
    with (
        inferring(session.backend, setup.batch(setup.batch_size)) as infer,
        decoding(setup, steps, steps.tile) as prepare,
    ):
        return interleave(
            {
                "model alone": lambda: ONCE.rate(infer).tiles_per_sec,
                "preparation alone": lambda: ONCE.rate(prepare).tiles_per_sec,
                "end to end": lambda: end_to_end(setup, steps, meter=ONCE).tiles_per_sec,
            },
            rounds=rounds,
        )


def publish(rates: dict[str, Rate], report: Path | None) -> None:
    """Print the rates and the efficiency, and write them."""
    bound = 1 / (1 / rates["model alone"].median + 1 / rates["preparation alone"].median)
    efficiency = rates["end to end"].median / bound
    for name, rate in rates.items():
        print(f"  {name:20} {rate}")
    print(f"  bound {bound:.1f} tiles/s, efficiency {efficiency:.3f}")
    if report:
        figures = {
            "benchmark": "efficiency",
            **describe(),
            "rates": {name: rate.to_json() for name, rate in rates.items()},
            "bound_tiles_per_sec": bound,
            "efficiency": efficiency,
        }
        report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
