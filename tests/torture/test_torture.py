"""A small piece of each campaign, and that each of them sees what it is there to see."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import jsonschema
import pytest

from cervix_engine.errors import TileDecodeError
from engine.run.faults import Campaign, Child
from engine.run.support import FINISHED, PATIENCE_S, drawn_tile, environment, make_bundle
from torture.corpus import IGNORED, OK, corpus, plant
from torture.errors import told
from torture.hostile import Finished, cuts, judge, judge_cuts, predict, refusals
from torture.kills import Tally, at_random_instants, tell_kills
from torture.report import RULES, TOLD, PartReport, Seen, load, page
from torture.soak import Sample, growths, sample

pytestmark = pytest.mark.timeout(600)

ORDINARY = Finished(0, "", 2**27, 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("torture") / "bundle").root


def torture(reports: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run one part as the program that it is: its exit code and its JSON."""
    command = [sys.executable, "-m", "torture", "--reports", str(reports), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    path = reports / f"{arguments[0]}.json"
    assert path.exists(), done.stderr[-3000:]
    return done.returncode, json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "fact", "at_least"),
    [
        ("kills --count 4 --programs 1 --tiles 24", "kills", 5),
        ("workers --count 6 --parents 2 --tiles 60", "kills", 8),
        ("fuzz --executions 2000", "executions", 2000),
        ("soak --runs 4 --minutes 0 --tiles 8", "runs", 4),
    ],
)
def test_a_small_part_holds(arguments: str, fact: str, at_least: int, tmp_path: Path) -> None:
    if arguments.startswith("fuzz"):
        pytest.importorskip("atheris", reason="atheris is for Linux on x86-64 only")
    code, document = torture(tmp_path, *arguments.split())
    assert (code, document["held"], document["seen"]["violations"]) == (0, True, [])
    assert document["seen"]["facts"][fact] >= at_least
    assert f"| {arguments.split()[0]} | yes |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    schema = json.loads(Path(__file__).with_name("torture.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(document)


# ---- kills


class Staged:
    """A campaign whose runs are told how to end: (exit code, table, what lies beside it)."""

    duration = 0.0
    changes: ClassVar[dict[str, frozenset[str]]] = {}

    def __init__(self, folder: Path, *ends: tuple[int, str, set[str]]) -> None:
        self.out = folder / "preds.csv"
        self._ends = iter(ends)

    def fresh(self, *, old: bool = False) -> None:
        assert not old

    def start(self, *options: str) -> Child:
        self._end = next(self._ends)
        for path in self.out.parent.iterdir():
            path.unlink()
        for name in self._end[2]:
            (self.out.parent / name).touch()
        return cast(Child, self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> tuple[int, str]:
        self._process.wait()
        return self._end[0], "what it said"

    def table(self) -> str:
        return self._end[1]

    def verdict(self) -> str:
        return "edited" if self._end[1] == "broken" else "as written"

    def __enter__(self) -> Staged:
        self._process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


KILLED = -signal.SIGKILL


@pytest.mark.parametrize(
    ("ends", "violation"),
    [
        ([(KILLED, "none", set()), (0, "new", FINISHED)], ""),
        ([(KILLED, "new", FINISHED)], ""),
        ([(KILLED, "broken", {"preds.csv"})], "after a kill the table is broken"),
        ([(KILLED, "none", set()), (0, "broken", FINISHED)], "the table is broken"),
        ([(KILLED, "none", set()), (1, "none", set())], "ended with 1: what it said"),
        ([(KILLED, "none", set()), (0, "new", {*FINISHED, "left.tmp"})], "left over is"),
    ],
)
def test_kills_tell_whatever_is_not_as_it_must_be(
    ends: list[tuple[int, str, set[str]]], violation: str, tmp_path: Path
) -> None:
    tally = Tally()
    with Staged(tmp_path, *ends) as campaign:
        at_random_instants(cast(Campaign, campaign), kills=1, seed=1, tally=tally)
    assert tally.kills.total() == 1
    assert bool(tally.violations) == bool(violation)
    assert violation in "; ".join(tally.violations)


def test_steps_tell_whatever_is_not_as_it_must_be() -> None:
    whole: dict[str, Any] = {"step": "fsync table", "code": KILLED, "table": "none", "verdict": "no such table"}
    whole["again"] = again = {"code": 0, "table": "new", "verdict": "as written", "left": sorted(FINISHED)}
    wrong = [
        {**whole, "code": 0},
        {**whole, "table": "broken", "verdict": "as written"},
        {**whole, "table": "new", "verdict": "edited"},
        {**whole, "again": {**again, "verdict": "edited"}},
        {**whole, "again": {**again, "table": "none"}},
        {**whole, "again": {**again, "left": ["table"]}},
        {**whole, "again": {**again, "code": 2}},
    ]
    for finding, expected in ((whole, 0), *((finding, 1) for finding in wrong)):
        tally = Tally()
        tell_kills([finding], old=False, tally=tally)
        assert (tally.kills, len(tally.violations)) == (Counter(fsync=1), expected), finding


# ---- errors


def test_errors_tell_whatever_is_not_as_it_must_be() -> None:
    whole: dict[str, Any] = {"step": "fsync table", "code": 1, "table": "none", "verdict": "no such table"}
    whole["stderr"] = "error: no\n"
    finished = {"code": 0, "table": "new", "verdict": "as written"}
    whole["again"] = again = {**finished, "left": sorted(FINISHED), "stderr": ""}
    right = [whole, {**whole, "step": "mkdir out", **finished}, {**whole, **finished, "code": 1}]
    wrong = [
        {**whole, "table": "broken", "verdict": "as written"},
        {**whole, "table": "new", "verdict": "edited"},
        {**whole, "stderr": "Traceback\n...\n"},
        {**whole, **finished},
        {**whole, **finished, "step": "stat tile.jpg", "table": "broken"},
        {**whole, "again": {**again, "table": "none"}},
        {**whole, "again": {**again, "left": []}},
        {**whole, "again": {**again, "code": 1}},
    ]
    tile = {"step": "open tile.jpg", "code": 3, "rows": ["tile.jpg,,failed,unreadable: no"]}
    tiles = [tile, {**tile, "rows": []}, {**tile, "code": 0}]
    seen = told([("EIO", [*right, *wrong]), ("ENOSPC", [])], tiles)
    assert len(seen.violations) == len(wrong) + len(tiles) - 1, seen.violations
    assert seen.calls == {"EIO": len(right) + len(wrong), "EIO of a tile": 3}
    assert seen.needless == 3


# ---- hostile files


@pytest.mark.slow
def test_every_hostile_file_becomes_what_is_specified(model: Path, tmp_path: Path) -> None:
    things = corpus(bombs=False)
    assert len(things) > 180
    plant(tmp_path / "things", things)
    out = tmp_path / "preds.csv"
    finished = predict(tmp_path / "things", model=model, out=out)
    assert finished.peak_bytes > 0
    assert finished.stderr == "", "quiet prints errors of the run, and those of tiles are in the table"
    assert judge(finished, things, out=out, ordinary=ORDINARY) == []
    # And what is not as specified is told.
    assert things[0].outcome == OK
    (other,) = judge(finished, [replace(things[0], outcome="empty"), *things[1:]], out=out, ordinary=ORDINARY)
    assert other.endswith("is ok, must be empty")
    lost = judge(finished, [*things, replace(things[0], path="lost.jpg")], out=out, ordinary=ORDINARY)
    assert lost == ["b'lost.jpg' is without a row, must be ok", lost[1]]
    more = judge(finished, [*things, replace(things[0], outcome=IGNORED)], out=out, ordinary=ORDINARY)
    assert ["ignored" in violation for violation in more] == [True]
    for change, message in (
        ({"code": 0}, "ended with 0"),
        ({"code": -11}, "ended with -11"),
        ({"stderr": "Traceback (most recent call last)"}, "a traceback"),
        ({"stderr": "libpng warning"}, "quiet: libpng warning"),
        ({"peak_bytes": 2**40}, "bytes"),
    ):
        (violation,) = judge(replace(finished, **change), things, out=out, ordinary=ORDINARY)
        assert message in violation
    assert "no table" in judge(finished, things, out=tmp_path / "gone.csv", ordinary=ORDINARY)[0]


@pytest.mark.slow
def test_a_tile_cut_anywhere_is_a_failed_row(model: Path, tmp_path: Path) -> None:
    tile = tmp_path / "tile.jpg"
    tile.write_bytes(drawn_tile(1, ".jpg"))
    wanted = cuts([tile], tmp_path / "cuts", step=16)
    assert len(wanted) == (len(tile.read_bytes()) + 15) // 16
    out = tmp_path / "preds.csv"
    finished = predict(tmp_path / "cuts", model=model, out=out)
    assert judge_cuts(finished, wanted, out=out, ordinary=ORDINARY) == []
    assert len(judge_cuts(finished, dict.fromkeys(wanted, OK), out=out, ordinary=ORDINARY)) == len(wanted)


@pytest.mark.slow
def test_what_is_no_folder_of_tiles_is_refused_as_a_whole(model: Path, tmp_path: Path) -> None:
    assert list(refusals(tmp_path / "refused", model=model)) == []


# ---- fuzzing


def test_the_fuzzer_ends_at_anything_but_a_refusal() -> None:
    pytest.importorskip("atheris", reason="atheris is for Linux on x86-64 only")
    from torture.fuzz_target import judge as judge_input

    def refuse(slot: Any, data: bytes, *, contract: object) -> None:
        if data == b"touched":
            slot[0, 0] = 0
        if data == b"broken":
            raise IndexError
        raise TileDecodeError("corrupt", "two\nlines" if data == b"lines" else "one line")

    counts: Counter[str] = Counter()
    one_input = judge_input(refuse, counts)
    one_input(b"refused")
    assert counts == {"corrupt": 1}
    for data, error in ((b"touched", AssertionError), (b"lines", AssertionError), (b"broken", IndexError)):
        with pytest.raises(error):
            one_input(data)


# ---- soak


def test_growth_is_seen_and_noise_is_not() -> None:
    steady = [Sample(10**8 + (index * 7919) % 2**20, 9 + index % 2, 1) for index in range(1000)]
    assert list(growths(steady)) == []
    settled = [replace(item, rss_bytes=item.rss_bytes + 2**26 * (index > 100)) for index, item in enumerate(steady)]
    assert list(growths(settled)) == []
    for field, step in (("rss_bytes", 16_384), ("descriptors", 1), ("threads", 1)):
        leaking = [replace(item, **{field: getattr(item, field) + index * step}) for index, item in enumerate(steady)]
        assert len(list(growths(leaking))) == 1


def test_a_sample_counts_what_is_open_and_running(tmp_path: Path) -> None:
    before, leave = sample(), threading.Event()
    thread = threading.Thread(target=leave.wait)
    with (tmp_path / "file").open("w"):
        thread.start()
        held = sample()
        leave.set()
        thread.join()
    assert (held.descriptors, held.threads) == (before.descriptors + 1, before.threads + 1)
    assert held.rss_bytes > 2**20


# ---- the report


def report(part: str, *violations: str) -> PartReport:
    seen = Seen({"runs": 1234567, "seconds a run": 0.5}, violations)
    return PartReport(part, f"python -m torture {part}", seen, 61.4)


def test_parts_are_saved_one_by_one_and_told_together(tmp_path: Path) -> None:
    parts = [report("soak", "threads: grew"), report("points")]
    for part in parts:
        part.save(tmp_path / "reports")
        assert load(tmp_path / "reports" / f"{part.part}.json") == part
    text = (tmp_path / "reports" / "report.md").read_text(encoding="utf-8")
    assert text == page([parts[1], parts[0]])
    for line in (
        "| points | yes | 61 |",
        "| soak | **no**, 1 violations | 61 |",
        "| runs | 1,234,567 |",
        "| seconds a run | 0.500 |",
        "- **violated**: threads: grew",
        RULES["soak"],
        "    python -m torture soak",
    ):
        assert line in text.splitlines()


def test_a_thousand_violations_are_counted_and_the_first_told() -> None:
    text = page([report("kills", *map(str, range(1000)))])
    assert "**no**, 1000 violations" in text
    assert text.count("**violated**") == TOLD
