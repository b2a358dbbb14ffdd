"""Writes the README's table of races from what the benchmarks measured.

    python benchmarks/table.py peers.json efficiency.json overhead.json

What lies between the two comments in README.md is replaced; everything else stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- benchmarks: begin -->"
END = "<!-- benchmarks: end -->"

Figures = dict[str, Any]


def peers(figures: Figures) -> Iterator[str]:
    """A row for each contender of each race; the first is the engine."""
    for race, rates in figures["races"].items():
        ours = next(iter(rates.values()))["median"]
        for name, rate in rates.items():
            yield f"| {race}: {name} | {_rate(rate)} | {ours / rate['median']:.2f} |"


def efficiency(figures: Figures) -> Iterator[str]:
    """One row: end to end, against what model and preparation allow."""
    rate = _rate(figures["rates"]["end to end"])
    yield f"| end to end against the bound of model and preparation | {rate} | {figures['efficiency']:.3f} |"


def stream_overhead(figures: Figures) -> Iterator[str]:
    """Two rows: the stream alone, and memory."""
    memory = figures["memory"]
    yield f"| the stream alone, slots filled, fsynced table | {_rate(figures['overhead'])} | |"
    megabytes = f"{memory['few_mb']:.0f} MB against {memory['many_mb']:.0f} MB"
    yield f"| memory, {memory['few']:,} against {memory['many']:,} tiles | {megabytes} | |"


ROWS: dict[str, Callable[[Figures], Iterator[str]]] = {
    "peers": peers,
    "efficiency": efficiency,
    "stream_overhead": stream_overhead,
}


def table(reports: list[Figures]) -> str:
    """The Markdown between the comments.

    Raises:
        ClickException: the reports come from different machines, whose figures must not share a table.
    """
    machines = {report["machine"] for report in reports}
    if len(machines) != 1:
        raise click.ClickException(f"the reports come from {len(machines)} machines: {', '.join(sorted(machines))}")
    rows = [row for report in reports for row in ROWS[report["benchmark"]](report)]
    head = [f"Measured on {machines.pop()} ({reports[0]['software']['cpu']}).", "", "| what | measured | engine ÷ it |"]
    return "\n".join([*head, "|---|---|---|", *rows])


def replaced(page: str, text: str) -> str:
    """`page` with `text` between the comments.

    Raises:
        ClickException: the page does not have both, once and in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise click.ClickException(f"{README.name} needs {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _rate(rate: Figures) -> str:
    return f"{rate['median']:,.1f} tiles/s ({rate['low']:,.1f} to {rate['high']:,.1f})"


@click.command()
@click.argument("reports", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--readme", type=click.Path(path_type=Path), default=README, help="The page.")
def main(reports: tuple[Path, ...], readme: Path) -> None:
    """Write the README's table from the JSON of benchmarks."""
    figures = [json.loads(path.read_text(encoding="utf-8")) for path in reports]
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), table(figures)), encoding="utf-8")


if __name__ == "__main__":
    main()
