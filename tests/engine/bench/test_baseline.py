"""A slowdown is found, noise is not, and unlike runs are not compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cervix_engine.bench.baseline import compare
from cervix_engine.bench.measure import Gate, Meter
from cervix_engine.bench.report import BenchReport
from cervix_engine.errors import UsageError
from engine.bench.reports import report, steady
from engine.bench.test_measure import Clock


def _accepts(validate: Callable[[str, Any], None], document: Any) -> bool:
    try:
        validate("bench", document)
    except jsonschema.ValidationError:
        return False
    return True


def _ratios(now: BenchReport, then: BenchReport) -> dict[str, float]:
    return {item.what: item.ratio for item in compare(now, then)}


def test_a_planted_slowdown_is_what_the_comparison_says() -> None:
    clock, gate = Clock(), Gate(round_s=0.0)
    before = Meter(gate, clock).rate(clock.working([0.1], tiles=10))
    after = Meter(gate, clock).rate(clock.working([0.1 * 1.1], tiles=10))
    ratios = _ratios(report(end_to_end=after), report(end_to_end=before))
    assert ratios["end to end"] == pytest.approx(1 / 1.1)
    assert ratios["model, batch 1"] == ratios["model, batch 32"] == 1.0


def test_only_what_both_runs_have_is_compared() -> None:
    now = report(sweep={1: steady(50.0), 8: steady(100.0)})
    then = report(sweep={1: steady(100.0), 16: steady(100.0)})
    assert _ratios(now, then) == {"end to end": 1.0, "model, batch 1": 0.5}


@pytest.mark.parametrize(("changed", "message"), [({"cores": 16}, "cores 2, this run 16"), ({"workers": 3}, "workers")])
def test_unlike_runs_are_not_compared(changed: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(report(**changed), report())  # type: ignore[arg-type]


def test_another_gpu_or_another_number_of_them_is_unlike() -> None:
    there = replace(report(), backend=replace(report().backend, device="2 x NVIDIA A10"))
    with pytest.raises(UsageError, match="device 2 x NVIDIA A10, this run cpu"):
        compare(report(), there)


def test_a_report_survives_its_json(tmp_path: Path, validate: Callable[[str, Any], None]) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(report().to_json()), encoding="utf-8")
    validate("bench", json.loads(path.read_text(encoding="utf-8")))
    assert BenchReport.load(path) == report()


def test_the_schema_refuses_every_change_of_a_key(
    validate: Callable[[str, Any], None], mutants: Callable[[Any], list[tuple[str, Any]]]
) -> None:
    # The versions by name are open: what software there is differs between machines.
    document = json.loads(json.dumps(report().to_json()))
    validate("bench", document)
    changed = [(what, mutant) for what, mutant in mutants(document) if "conditions.software." not in what]
    accepted = [what for what, mutant in changed if _accepts(validate, mutant)]
    assert len(changed) > 200
    assert accepted == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "cervix/run/1"}', '{"schema": "cervix/bench/1"}'])
def test_a_baseline_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="cannot read the baseline"):
        BenchReport.load(path)


def test_a_baseline_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the baseline"):
        BenchReport.load(tmp_path / "none.json")
