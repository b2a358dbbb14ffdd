"""`cervix-bench` from the command line: once for real, then with reports of our own for what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cervix_engine.bench.bench import BenchConfig, Say
from cervix_engine.bench.report import BenchReport
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.bench import REGRESSED, main
from engine.bench.reports import report, steady

QUICK = ["--sweep", "1,4", "-b", "4", "-j", "2", "--count", "8", "--max-rounds", "5", "--round-seconds", "0"]


def bench_gives(*measured: BenchReport) -> Callable[..., Result]:
    """The command with such measurements, which no test may depend on; the last one is given again and again."""
    left = list(measured)

    def bench(_config: BenchConfig, *, say: Say) -> BenchReport:
        return left.pop(0) if len(left) > 1 else left[0]

    return lambda *arguments: _run(*arguments, obj=bench)


def _baseline(folder: Path, measured: BenchReport) -> str:
    path = folder / "baseline.json"
    path.write_text(json.dumps(measured.to_json()), encoding="utf-8")
    return str(path)


def _run(*arguments: str | Path, obj: object = None) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), obj=obj)


def test_a_bundle_is_measured_with_its_golden_tiles(
    bundle: Bundle, tmp_path: Path, validate: Callable[[str, Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cervix_engine.bench.measure.LATENCY_CALLS", 5)
    out, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    done = _run("--model", bundle.root, *QUICK, "--scratch", tmp_path, "--out", out, "--plot", picture, "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(done.stdout) == data
    validate("bench", data)
    assert (data["tiles"], data["batch_size"], data["workers"]) == (8, 4, 2)
    assert [item["batch_size"] for item in data["model"]] == [1, 4]
    assert [item["stage"] for item in data["stages"]] == ["read", "decode", "resize", "copy", "infer", "write"]
    assert all(item["rate"]["tiles_per_sec"] > 0 for item in data["stages"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.png"}


def test_the_verdict_is_the_last_line() -> None:
    run = bench_gives(report())
    done = run()
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == str(report().verdict)
    assert "p50 10.00 ms, p99 13.00 ms" in done.stdout


@pytest.mark.parametrize(("rate", "code"), [(100.0, 0), (96.0, 0), (90.0, REGRESSED), (120.0, 0)])
def test_a_run_that_is_slower_than_its_baseline_ends_with_6(tmp_path: Path, rate: float, code: int) -> None:
    run = bench_gives(report(end_to_end=steady(rate)))
    done = run("--baseline", _baseline(tmp_path, report()))
    assert done.exit_code == code
    assert ("regressed: end to end: 90.0 tiles/s, 100.0 in the baseline (0.900)" in done.stderr) == (code == REGRESSED)


def test_what_is_slower_once_is_measured_again(tmp_path: Path) -> None:
    slow, usual = report(end_to_end=steady(90.0)), report()
    run = bench_gives(slow, usual)
    done = run("--baseline", _baseline(tmp_path, usual), "--out", tmp_path / "out.json")
    assert done.exit_code == 0
    assert "measuring once more" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == json.loads(json.dumps(usual.to_json()))


def test_another_figure_that_is_slow_the_second_time_is_no_regression(tmp_path: Path) -> None:
    first, second = report(end_to_end=steady(90.0)), report(sweep={1: steady(50.0), 32: steady(300.0)})
    run = bench_gives(first, second)
    assert run("--baseline", _baseline(tmp_path, report())).exit_code == 0


def test_how_much_slower_may_be_chosen(tmp_path: Path) -> None:
    run = bench_gives(report(end_to_end=steady(90.0)))
    assert run("--baseline", _baseline(tmp_path, report()), "--fail-below", "0.85").exit_code == 0


def test_an_unstable_run_cannot_be_compared(tmp_path: Path) -> None:
    run = bench_gives(report(end_to_end=replace(steady(100.0), high=150.0, stable=False)))
    done = run("--baseline", _baseline(tmp_path, report()))
    assert done.exit_code == REGRESSED
    assert "unstable: end to end" in done.stderr
    assert run().exit_code == 0, "without a baseline it is only said"


def test_the_baseline_is_read_before_anything_is_measured(tmp_path: Path) -> None:
    done = _run("--baseline", tmp_path / "none.json", obj=lambda *_, **__: pytest.fail("measured in vain"))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: cannot read the baseline")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "1,x"], "expected sizes from 1 to 4096"),
        (["--sweep", "0"], "expected sizes from 1 to 4096"),
        (["--sweep", "9999"], "expected sizes from 1 to 4096"),
        (["--stable-within", "0"], "--stable-within"),
        (["--max-rounds", "2"], "--max-rounds"),
        (["--fail-below", "0"], "--fail-below"),
        (["--batch-size", "0"], "--batch-size"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], message: str) -> None:
    done = _run(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_bad_places_are_one_line(bundle: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "tiles"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    for arguments, message in [
        ((tmp_path / "none",), "no such folder"),
        ((broken,), "can be decoded"),
        (("--scratch", tmp_path / "none"), "cannot write in"),
    ]:
        done = _run(*arguments, "--model", bundle.root, *QUICK)
        assert done.exit_code == 2, done.output
        assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("name", "code"), [("bench.txt", 2), ("none/bench.png", 1)])
def test_a_picture_that_cannot_be_drawn_is_one_line(tmp_path: Path, name: str, code: int) -> None:
    run = bench_gives(report())
    done = run("--plot", tmp_path / name)
    assert done.exit_code == code
    assert done.stderr.startswith("error: cannot ")


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    run = bench_gives(report())
    done = run("--out", tmp_path / "none" / "bench.json")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: cannot write")
