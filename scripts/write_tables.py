"""Writes the tables of measurements in README.md and docs/figures.md from the figures in benchmarks/results/.

Usage: python scripts/write_tables.py [--check]

Each file there is what one benchmark wrote with `--json`, or `cervix-parity --json`, or a training's `metrics.json`.
README has the rows that say most, docs/figures.md all of them. What lies between a page's two comments is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cervix_engine.words import counted

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
README, ALL_FIGURES = ROOT / "README.md", ROOT / "docs" / "figures.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        what: what was measured.
        measured: in words, with units.
        by: what measured it.
        ratio: of ours to the other, where there is one.
        in_readme: whether README has it too.
    """

    what: str
    measured: str
    by: str
    ratio: str = ""
    in_readme: bool = False

    def __str__(self) -> str:
        return f"| {self.what} | {self.measured} | {self.ratio} | {self.by} |"


def folder_vs_keras(runs: Sequence[Figures]) -> Iterator[Row]:
    """The headline: files to table, against what a Keras user would write."""
    for run in sorted(runs, key=lambda run: -run["engine"]["median"]):
        ours, keras = run["engine"], run["keras"]
        ratio = f"**{ours['median'] / keras['median']:.2f}**"
        ready = f"; ready after {run['ready_s']['engine']:.1f} s" if "ready_s" in run else ""
        measured = f"{_rate(ours)} against {_rate(keras)}{ready}"
        what = f"`cervix-batch` in {run['precision'].upper()}, files to fsynced table, against Keras's folder pipeline"
        yield Row(f"{what} and `predict`, {run['tiles']} tiles", measured, _script(run), ratio, in_readme=True)


def model_loop(runs: Sequence[Figures]) -> Iterator[Row]:
    """The model alone, against the best that OpenVINO's own program reports."""
    words = [f"{run['precision'].upper()} {run['engine']:.1f} and {run['benchmark_app']:.1f}" for run in runs]
    ratios = [f"{run['engine'] / run['benchmark_app']:.2f}" for run in runs]
    what = "the model alone, against OpenVINO's `benchmark_app` at its best setting"
    yield Row(what, f"{', '.join(words)} tiles/s", _script(runs[0]), ", ".join(ratios), in_readme=True)


def batch_one(runs: Sequence[Figures]) -> Iterator[Row]:
    """The latency of a single tile."""
    for run in runs:
        plain, ours = run["ms"]["plain onnxruntime, session.run"], run["ms"]["engine, onnxruntime-cpu"]
        shown = (f"{name} {ours[name]:.1f} ms and {plain[name]:.1f} ms" for name in ("p50", "p99"))
        what = f"a single tile, {run['precision'].upper()}, against a plain ONNX Runtime session"
        yield Row(what, ", ".join(shown), _script(run), f"{ours['p50'] / plain['p50']:.2f}", in_readme=True)


def auto_scan(runs: Sequence[Figures]) -> Iterator[Row]:
    """What is chosen by itself, against the best of all that was tried."""
    kinds = (f"{run['tiles']['suffix'].lstrip('.')} of {run['tiles']['side_px']} px" for run in runs)
    ratios = ", ".join(f"{run['ratio']:.2f}" for run in runs)
    what = "automatic batch size and workers, against the best of a scan"
    yield Row(what, f"tiles: {', '.join(kinds)}", _script(runs[0]), ratios)


def protocol_vs_keras(runs: Sequence[Figures]) -> Iterator[Row]:
    """The paper's whole training, extrapolated."""
    for run in runs:
        plain, ways = run["plain_s"], [("", run["fp32_s"]), ("with `--mixed-precision` ", run.get("mixed_s"))]
        ours = [(name, seconds) for name, seconds in ways if seconds]
        measured = ", ".join(f"{name}{seconds / 3600:.2f} h" for name, seconds in ours)
        ratio = ", ".join(f"{plain / seconds:.0f}" for _, seconds in ours)
        what = f"the paper's training protocol, {run['tiles']:,} tiles and {run['epochs']} epochs, extrapolated"
        yield Row(
            f"{what}, against the plain Keras loop", f"{measured} against {plain / 3600:.1f} h", _script(run), ratio
        )


def peers(runs: Sequence[Figures]) -> Iterator[Row]:
    """A row for each contender of each race; the first is the engine."""
    for run in runs:
        for race, rates in run["races"].items():
            ours = next(iter(rates.values()))["median"]
            for name, rate in rates.items():
                yield Row(f"{race}: {name}", _rate(rate), _script(run), f"{ours / rate['median']:.2f}")


def efficiency(runs: Sequence[Figures]) -> Iterator[Row]:
    """End to end, against what model and preparation allow."""
    for run in runs:
        what = "end to end, against the bound of model and preparation"
        ratio = f"{run['efficiency']:.3f}"
        yield Row(what, _rate(run["rates"]["end to end"]), _script(run), ratio, in_readme=True)


def stream_overhead(runs: Sequence[Figures]) -> Iterator[Row]:
    """The stream alone, and memory."""
    for run in runs:
        memory = run["memory"]
        yield Row("the stream alone, slots filled, fsynced table", _rate(run["overhead"]), _script(run), in_readme=True)
        megabytes = f"{memory['few_mb']:.0f} MB against {memory['many_mb']:.0f} MB"
        yield Row(
            f"memory, {memory['few']:,} against {memory['many']:,} tiles", megabytes, _script(run), in_readme=True
        )


def million_rows(runs: Sequence[Figures]) -> Iterator[Row]:
    """A large table's report."""
    for run in runs:
        measured = f"{run['seconds']:.1f} s, at most {run['peak_mb']:.0f} MB"
        yield Row(f"a report, summary and GeoJSON of {run['rows']:,} rows", measured, _script(run), in_readme=True)


def decoders(runs: Sequence[Figures]) -> Iterator[Row]:
    """A row for each kind of larger tile; the ratios are to our decoder's time."""
    for run in runs:
        for kind, found in run["races"].items():
            ours = found["cervix"]["ms"]
            shown = (f"{name} {one['ms']:.2f}" for name, one in found.items())
            ratios = (f"{one['ms'] / ours:.2f}" for name, one in found.items() if name != "cervix")
            yield Row(f"decoding, {kind}", f"{', '.join(shown)} ms of CPU a tile", _script(run), ", ".join(ratios))


def pixels_vs_tensorflow(runs: Sequence[Figures]) -> Iterator[Row]:
    """What another loader would do to the same model."""
    for run in runs:
        largest, flips = run["largest"], counted(run["flips"], "class changes", "classes change")
        measured = f"pixels differ by up to {largest['levels']} of 255 levels, probabilities by up to "
        measured += f"{largest['probability']:.2f}; {flips}"
        yield Row(f"TensorFlow's own image loader instead of ours, {run['tiles']} tiles", measured, _script(run))


def parity(runs: Sequence[Figures]) -> Iterator[Row]:
    """How far each form of the model answers from the one before it."""
    for run in runs:
        for layer in run["layers"]:
            if not (found := layer["parity"]):
                continue
            changed = _changed([flip["margin"] for flip in found["flips"]])
            measured = (
                f"largest probability difference {found['max_absdiff']:.1e}, p99 {found['p99_absdiff']:.1e}; {changed}"
            )
            yield Row(f"{layer['subject']}, {layer['tiles']:,} tiles", measured, "`cervix-parity`", in_readme=True)


def metrics(runs: Sequence[Figures]) -> Iterator[Row]:
    """How well the model does on tiles of groups that it has not seen."""
    for run in runs:
        scores = (("accuracy", run["accuracy"], run["accuracy_interval"]),)
        scores += (("macro F1", run["macro"]["f1"], run["macro_f1_interval"]),)
        shown = (f"{name} {value:.1%} ({low:.1%} to {high:.1%})" for name, value, (low, high) in scores)
        what = f"{run['split']} split, {run['tiles']:,} tiles of {run['groups']} groups unseen in training"
        yield Row(f"{what}; 95 %, whole groups resampled", ", ".join(shown), "`cervix-train`", in_readme=True)


# What writes figures -> their rows, in the order of the tables.
ROWS: dict[str, Callable[[Sequence[Figures]], Iterator[Row]]] = {
    each.__name__: each
    for each in (
        folder_vs_keras,
        model_loop,
        batch_one,
        efficiency,
        stream_overhead,
        million_rows,
        parity,
        metrics,
        peers,
        auto_scan,
        decoders,
        protocol_vs_keras,
        pixels_vs_tensorflow,
    )
}


def table(reports: Sequence[Figures], *, whole: bool = True) -> str:
    """The Markdown between the comments: all rows, or README's.

    Raises:
        ClickException: rates come from different machines, which must not share a table, or from an unknown benchmark.
    """
    timed = [report for report in reports if "software" in report]
    machines = {report["machine"] for report in timed}
    if len(machines) != 1:
        raise click.ClickException(f"the reports come from {len(machines)} machines: {', '.join(sorted(machines))}")
    if unknown := sorted({_kind(report) for report in reports} - ROWS.keys()):
        raise click.ClickException(f"no rows are known for {', '.join(unknown)}: expected {', '.join(ROWS)}")
    by_kind = {kind: [report for report in reports if _kind(report) == kind] for kind in ROWS}
    rows = [row for kind, runs in by_kind.items() if runs for row in ROWS[kind](runs) if whole or row.in_readme]
    head = f"Measured on {machines.pop()} ({timed[0]['software']['cpu']})."
    # What a benchmark writes says how busy the machine was.
    if any("load" not in report for report in timed):
        head += " Some figures are older than their benchmark's `--json`, and rounded as they were published."
    return "\n".join([head, "", "| what | measured | ratio | by |", "|---|---|---|---|", *map(str, rows)])


def read_results(folder: Path) -> list[Figures]:
    """All figures there, in the order of their files' names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def replaced(page: str, text: str, *, name: str = README.name) -> str:
    """`page` with `text` between the comments.

    Raises:
        ClickException: the page does not have both, once and in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise click.ClickException(f"{name} needs {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _kind(report: Figures) -> str:
    """A benchmark's name, or that in a schema such as `cervix/parity/1`."""
    return str(report.get("benchmark") or report["schema"].split("/")[1])


def _changed(margins: Sequence[float]) -> str:
    if not margins:
        return "no class changed"
    return f"{counted(len(margins), 'class', 'classes')} changed, at margins up to {max(margins):.2f}"


def _script(run: Figures) -> str:
    script = next(BENCHMARKS.rglob(f"{run['benchmark']}.py"))
    return f"`{script.relative_to(ROOT).as_posix()}`"


def _rate(rate: Figures) -> str:
    return f"{rate['median']:,.1f} tiles/s ({rate['low']:,.1f} to {rate['high']:,.1f})"


@click.command()
@click.option("--check", is_flag=True, help="Only say whether the pages are up to date.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Folder of figures.")
@click.option("--readme", type=click.Path(path_type=Path), default=README, help="Page for README's rows.")
@click.option("--figures", type=click.Path(path_type=Path), default=ALL_FIGURES, help="Page for all rows.")
def main(check: bool, results: Path, readme: Path, figures: Path) -> None:
    """Write the tables of measurements."""
    reports = read_results(results)
    for page, whole in ((readme, False), (figures, True)):
        before = page.read_text(encoding="utf-8")
        after = replaced(before, table(reports, whole=whole), name=page.name)
        if not check:
            page.write_text(after, encoding="utf-8")
        elif after != before:
            raise click.ClickException(f"{page.name} is out of date: python scripts/write_tables.py")


if __name__ == "__main__":
    main()
