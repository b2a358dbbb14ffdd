"""What an earlier version left on disk is gone on with, checked and mended, to the bytes that it would have made.

`format_1/` was written with the fake backend by the first version that has this format: a partial run of 11 tiles, one
killed after its assembly and one behind its rename, a finished table with two failed tiles, and two retries of it, one
stopped and one done. `@TILES@`, `@MODEL@` and `@BUNDLE@` stand for what differs wherever this test runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.run.assembly.beside import record_of
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.record import RunRecord
from cervix_engine.run.transaction import State, TableTransaction
from cervix_engine.run.verify import verify_table, verify_tiles
from engine.run.support import FINISHED, SpyBackend, beside, choose_fake, run_setup

FORMAT = Path(__file__).with_name("format_1")
EARLIER = FINISHED - {"preds.csv.stamps"}  # which the first versions did not write
BATCHES = 6  # of two tiles
LISTED_NS = 1_700_000_000_000_000_000
EMPTY = "slide b/x96_y0.png"  # and mended later

LayOut = Callable[..., BatchConfig]


@pytest.fixture
def lay_out(fake_bundle: Bundle, tmp_path: Path) -> LayOut:
    """Put what was left in a folder, as if it had been left there."""
    tiles = tmp_path / "study"
    shutil.copytree(FORMAT / "tiles", tiles)

    def placed(text: str) -> str:
        words = {"@TILES@": str(tiles), "@MODEL@": str(fake_bundle.root), "@BUNDLE@": fake_bundle.digest}
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        return text

    def signed(journal: str) -> str:
        head, rest = journal.split("\n", 1)
        entry = json.loads(head)["entry"]
        check = hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:16]
        return json.dumps({"check": check, "entry": entry}) + "\n" + rest

    def lay(name: str, *, mended: bool = False, **options: Any) -> BatchConfig:
        if mended:
            shutil.copy(FORMAT / "mended.png", tiles / EMPTY)
        for path in tiles.rglob("*.png"):
            os.utime(path, ns=(LISTED_NS, LISTED_NS))
        shutil.copytree(FORMAT / name, tmp_path / name)
        for path in (tmp_path / name).rglob("*.json*"):
            text = placed(path.read_text(encoding="utf-8"))
            path.write_text(signed(text) if path.name == "journal.jsonl" else text, encoding="utf-8")
        out = tmp_path / name / "preds.csv"
        return BatchConfig(tiles=tiles, out=out, model=fake_bundle.root, retry_failures=mended, **options)

    return lay


def computed(config: BatchConfig) -> int:
    """Run it to its end; how many batches that took."""
    spies: list[SpyBackend] = []

    def spied(backend: Any) -> SpyBackend:
        spies.append(SpyBackend(backend))
        return spies[-1]

    predict_folder(config, setup=run_setup(choose=choose_fake, around=spied))
    return sum(len(spy.digests) for spy in spies)


def said(now: Any, written: Any) -> Any:
    """What `now` says of that which `written` says: a later version may say more, and nothing less or else.

    Which stage bound a run is no fact but a judgement of its times, which a later version may make by another rule.
    """
    if isinstance(written, dict) and isinstance(now, dict):
        judged = {"bound_by": written["bound_by"]} if "bound_by" in written else {}
        return {key: said(now[key], value) for key, value in written.items()} | judged
    return now


def assert_as_written(config: BatchConfig, name: str, *, files: set[str] = FINISHED) -> None:
    """The table, its row checks and the books of its record are those that the earlier version wrote."""
    for suffix in ("", ".rows"):
        file = f"preds.csv{suffix}"
        assert config.out.with_name(file).read_bytes() == (FORMAT / name / file).read_bytes()
    written = json.loads((FORMAT / name / "preds.csv.run.json").read_text(encoding="utf-8"))
    now = json.loads(config.record_path.read_text(encoding="utf-8"))
    for key in ("schema", "status", "reason", "found", "ignored", "ok", "failed", "failures", "flagged", "table"):
        assert said(now[key], written[key]) == written[key], key
    assert now.keys() >= written.keys()
    assert beside(config.out) == files
    assert verify_table(config.out) == []
    assert verify_tiles(config.out, config.tiles) == []


@pytest.mark.parametrize(
    ("name", "state", "batches", "files"),
    [
        ("partial", State.PARTIAL, 3, FINISHED),
        ("assembled", State.ASSEMBLED, 0, FINISHED),
        ("committed", State.COMMITTED, 0, EARLIER),
    ],
)
def test_a_run_that_was_left_goes_on(lay_out: LayOut, name: str, state: State, batches: int, files: set[str]) -> None:
    config = lay_out(name)
    assert TableTransaction(config.out).load() is state
    assert computed(config) == batches
    assert_as_written(config, "finished", files=files)


def test_a_new_run_makes_the_same_table(lay_out: LayOut) -> None:
    config = lay_out("finished", batch_size=2, hash_tiles=True, judge_quality=True, overwrite=True)
    assert_as_written(config, "finished", files=EARLIER)
    assert computed(config) == BATCHES
    assert_as_written(config, "finished")


@pytest.mark.parametrize(("name", "batches"), [("finished", 1), ("retrying", 0)])
def test_a_table_is_mended(lay_out: LayOut, name: str, batches: int) -> None:
    config = lay_out(name, mended=True)
    assert verify_table(config.out) == []
    assert computed(config) == batches
    assert_as_written(config, "retried", files=EARLIER)


@pytest.mark.parametrize("name", ["partial", "assembled", "committed", "finished", "retrying", "retried"])
def test_a_record_says_all_that_it_said(lay_out: LayOut, name: str, validate: Callable[[str, Any], None]) -> None:
    config = lay_out(name)
    document = json.loads(config.record_path.read_text(encoding="utf-8"))
    validate("run", document)
    assert said(RunRecord.load(config.record_path).to_json(), document) == document
    if config.out.exists():
        assert record_of(config.out).table is not None
