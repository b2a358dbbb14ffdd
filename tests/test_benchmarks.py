"""The benchmarks' own table: made from their JSON, between two comments, and from one machine only."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RATE = {"median": 1234.5, "low": 1000.0, "high": 1500.0}
COMMON = {"machine": "2 cores", "software": {"cpu": "a CPU"}}
PEERS = {
    **COMMON,
    "benchmark": "peers",
    "races": {"a race": {"cervix-batch": RATE, "a loop": {**RATE, "median": 617.25}}},
}
EFFICIENCY = {**COMMON, "benchmark": "efficiency", "rates": {"end to end": RATE}, "efficiency": 0.98}
MEMORY = {"few": 1000, "many": 1_000_000, "few_mb": 70.0, "many_mb": 80.0}
OVERHEAD = {**COMMON, "benchmark": "stream_overhead", "memory": MEMORY, "overhead": RATE}


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


table = _load("table")


def _written(folder: Path, *reports: dict[str, Any]) -> list[str]:
    paths = [folder / f"{index}.json" for index in range(len(reports))]
    for path, report in zip(paths, reports, strict=True):
        path.write_text(json.dumps(report), encoding="utf-8")
    return list(map(str, paths))


def test_only_what_lies_between_the_comments_changes(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
    arguments = [*_written(tmp_path, PEERS, EFFICIENCY, OVERHEAD), "--readme", str(page)]
    for _ in range(2):
        done = CliRunner().invoke(table.main, arguments)
        assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith(f"{table.END}\nafter\n")
    assert "old" not in text
    assert text.count("| a race: a loop | 617.2 tiles/s (1,000.0 to 1,500.0) | 2.00 |") == 1
    assert "| memory, 1,000 against 1,000,000 tiles | 70 MB against 80 MB | |" in text


def test_figures_of_two_machines_share_no_table(tmp_path: Path) -> None:
    done = CliRunner().invoke(table.main, _written(tmp_path, PEERS, {**EFFICIENCY, "machine": "16 cores"}))
    assert done.exit_code == 1
    assert "2 machines" in done.output


@pytest.mark.parametrize(
    "page", ["", "<!-- benchmarks: begin -->", "<!-- benchmarks: end --><!-- benchmarks: begin -->"]
)
def test_a_page_without_the_comments_stays_as_it_is(tmp_path: Path, page: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(page, encoding="utf-8")
    done = CliRunner().invoke(table.main, [*_written(tmp_path, PEERS), "--readme", str(readme)])
    assert done.exit_code == 1
    assert readme.read_text(encoding="utf-8") == page


def test_the_readme_has_a_place_for_the_table() -> None:
    assert "a table" in table.replaced(table.README.read_text(encoding="utf-8"), "a table")
