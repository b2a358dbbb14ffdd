"""Benchmarks say how they are used; their tables are made from their JSON, between two comments, of one machine."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "write_tables.py"
PROGRAMS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
]
RATE = {"median": 1234.5, "low": 1000.0, "high": 1500.0}
COMMON = {"machine": "2 cores", "software": {"cpu": "a CPU"}, "load": 0.4}
PEERS = {
    **COMMON,
    "benchmark": "peers",
    "races": {"a race": {"cervix-batch": RATE, "a loop": {**RATE, "median": 617.25}}},
}
EFFICIENCY = {**COMMON, "benchmark": "efficiency", "rates": {"end to end": RATE}, "efficiency": 0.98}
MEMORY = {"few": 1000, "many": 1_000_000, "few_mb": 70.0, "many_mb": 80.0}
OVERHEAD = {**COMMON, "benchmark": "stream_overhead", "memory": MEMORY, "overhead": RATE}
FLIP = {"tile": "a", "reference": "b", "candidate": "c", "margin": 0.021}
LAYER = {
    "subject": "int8, and fp32",
    "tiles": 1130,
    "parity": {"max_absdiff": 0.039, "p99_absdiff": 0.01, "flips": [FLIP]},
}
PARITY = {"schema": "cervix/parity/1", "machine": "other words", "layers": [LAYER, {**LAYER, "parity": None}]}


def _load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


tables = _load(SCRIPT)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_benchmark_says_how_it_is_used(program: str) -> None:
    module = importlib.import_module(program)
    assert f"python -m {program} " in (module.__doc__ or "")
    done = CliRunner().invoke(module.main, ["--help"])
    assert (done.exit_code, done.output.startswith("Usage: ")) == (0, True), done.output


def _write(folder: Path, *reports: dict[str, Any], options: tuple[str, ...] = (), page: str | None = None) -> Result:
    results = folder / "results"
    results.mkdir(exist_ok=True)
    for index, report in enumerate(reports):
        (results / f"{index}.json").write_text(json.dumps(report), encoding="utf-8")
    for name in ("README.md", "figures.md"):
        if not (folder / name).exists():
            (folder / name).write_text(page or f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n", encoding="utf-8")
    pages = ["--readme", str(folder / "README.md"), "--figures", str(folder / "figures.md")]
    return CliRunner().invoke(tables.main, ["--results", str(results), *pages, *options])


def test_only_what_lies_between_the_comments_changes(tmp_path: Path) -> None:
    for _ in range(2):
        done = _write(tmp_path, PEERS, EFFICIENCY, OVERHEAD, PARITY)
        assert done.exit_code == 0, done.output
    text = (tmp_path / "figures.md").read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith(f"{tables.END}\nafter\n")
    assert "old" not in text
    race = "| a race: a loop | 617.2 tiles/s (1,000.0 to 1,500.0) | 2.00 | `benchmarks/races/peers.py` |"
    assert text.count(race) == 1
    memory = "| memory, 1,000 against 1,000,000 tiles | 70 MB against 80 MB |  | "
    assert f"{memory}`benchmarks/stream/stream_overhead.py` |" in text
    assert (
        "| int8, and fp32, 1,130 tiles | largest probability difference 3.9e-02, p99 1.0e-02; 1 class changed" in text
    )
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "end to end" in readme
    assert "a race" not in readme, "what says less is on the other page alone"


def test_a_page_that_is_out_of_date_is_found(tmp_path: Path) -> None:
    assert _write(tmp_path, EFFICIENCY, options=("--check",)).exit_code == 1
    assert _write(tmp_path).exit_code == 0
    assert _write(tmp_path, options=("--check",)).exit_code == 0
    stale = _write(tmp_path, {**EFFICIENCY, "efficiency": 0.97}, options=("--check",))
    assert (stale.exit_code, "README.md is out of date: python scripts/write_tables.py" in stale.output) == (1, True)


def test_figures_that_no_benchmark_wrote_are_told_apart(tmp_path: Path) -> None:
    def page(report: dict[str, Any]) -> str:
        assert _write(tmp_path, report).exit_code == 0
        return (tmp_path / "README.md").read_text(encoding="utf-8")

    assert "Measured on 2 cores (a CPU).\n" in page(EFFICIENCY)
    published = {name: value for name, value in EFFICIENCY.items() if name != "load"}
    assert "rounded as they were published" in page(published)


def test_figures_of_two_machines_share_no_table(tmp_path: Path) -> None:
    done = _write(tmp_path, PEERS, {**EFFICIENCY, "machine": "16 cores"})
    assert done.exit_code == 1
    assert "2 machines" in done.output


def test_an_unknown_benchmark_is_not_left_out_in_silence(tmp_path: Path) -> None:
    done = _write(tmp_path, {**COMMON, "benchmark": "guess"})
    assert (done.exit_code, "no rows are known for guess" in done.output) == (1, True)


@pytest.mark.parametrize("page", ["none", "<!-- figures: begin -->", "<!-- figures: end --><!-- figures: begin -->"])
def test_a_page_without_the_comments_stays_as_it_is(tmp_path: Path, page: str) -> None:
    assert _write(tmp_path, PEERS, page=page).exit_code == 1
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == page


def test_the_pages_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_figure_of_the_tables_is_measured_by_one_command() -> None:
    measuring = _load(ROOT / "scripts" / "measure_all.py")
    names = [item.name for item in measuring.MEASUREMENTS]
    assert len(set(names)) == len(names)
    assert {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")} <= {*names, measuring.METRICS}
    for item in measuring.MEASUREMENTS:
        for trial in (False, True):
            command = item.arguments(Path("/t"), Path("/b"), Path("/o.json"), trial=trial)
            assert command[2] in PROGRAMS if command[1] == "-m" else Path(command[0]).is_file(), command
            assert command[-2:] == ["--json", "/o.json"]
            assert not any("{" in word for word in command)


def test_a_measurement_that_fails_keeps_the_figures_that_it_had(tmp_path: Path) -> None:
    measuring = _load(ROOT / "scripts" / "measure_all.py")
    (tmp_path / "overhead.json").write_text("as before", encoding="utf-8")
    # No tiles: the benchmark cannot run.
    arguments = [str(tmp_path), "--model", str(tmp_path), "--results", str(tmp_path), "--only", "overhead"]
    done = CliRunner().invoke(measuring.main, arguments)
    assert done.exit_code == 1
    assert "failed, so their figures are as before: overhead" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["overhead.json"]
    assert (tmp_path / "overhead.json").read_text(encoding="utf-8") == "as before"


def test_the_first_hour_finds_readmes_commands() -> None:
    timing = _load(ROOT / "scripts" / "time_first_hour.py")
    readme = ROOT / "README.md"
    assert timing.block(readme, "make demo")[0] == "make demo"
    (report,) = timing.block(readme, timing.OWN_TILES)
    assert report.startswith(".venv/bin/cervix-batch my/tiles ")
    assert "--report report.html" in report
