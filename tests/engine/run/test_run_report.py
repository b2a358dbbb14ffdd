"""`preds.csv.run.json` is true from a run's start to its end, and an old table keeps its own until it is replaced."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import FailureBudgetExceeded, OutputError, UsageError
from cervix_engine.report.facts import load_facts, moment
from cervix_engine.run.assembly.beside import checks_path, record_of
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.record import RunRecord
from cervix_engine.run.transaction import TableTransaction
from cervix_engine.run.verify import verify_table
from engine.run.support import draw_folder

pytestmark = pytest.mark.timeout(120)

Validate = Callable[[str, Any], None]


@pytest.fixture
def config(tiles: Path, bundle: Bundle, tmp_path: Path) -> BatchConfig:
    return BatchConfig(tiles=tiles, out=tmp_path / "preds.csv", model=bundle.root, batch_size=8)


def stored(config: BatchConfig) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(config.record_path.read_text(encoding="utf-8"))
    return document


def seen_while_running(config: BatchConfig) -> dict[str, Any]:
    """The report as it is behind the first batch."""
    seen: list[dict[str, Any]] = []
    predict_folder(config, progress=lambda *_: seen.append(stored(config)))
    return seen[0]


def stopped(config: BatchConfig, error: BaseException) -> dict[str, Any]:
    """The report that a run leaves behind which `error` stopped after its second batch."""

    def stop(done: int, _found: int) -> None:
        if done >= 16:
            raise error

    with pytest.raises(type(error)):
        predict_folder(config, progress=stop)
    return stored(config)


def test_it_is_there_from_the_start(config: BatchConfig, bundle: Bundle, validate: Validate) -> None:
    report = seen_while_running(config)
    validate("run", report)
    assert (report["status"], report["found"], report["ok"], report["table"]) == ("running", 50, 0, None)
    provenance = report["provenance"]
    assert provenance["bundle_digest"] == bundle.digest
    assert provenance["arguments"]["tiles"] == str(config.tiles)
    assert (provenance["arguments"]["batch_size"], provenance["arguments"]["budget"]["share"]) == (8, 0.1)
    assert provenance["software"]["numpy"] == np.__version__
    assert (report["backend"]["precision"], report["backend"]["device"]) == ("fp32", "cpu")


def test_at_the_end_it_says_what_happened(config: BatchConfig, validate: Validate) -> None:
    report = predict_folder(config)
    document = stored(config)
    validate("run", document)
    assert RunRecord.load(config.record_path) == report
    assert (report.status, report.reason, report.replaces, report.ok) == ("done", None, None, 50)


def test_a_time_is_said_as_people_read_it() -> None:
    assert moment("2026-11-27T17:30:42.272+00:00") == "2026-11-27 17:30:42 UTC"


def test_it_says_when_where_and_by_which_command_a_run_was_made(config: BatchConfig, validate: Validate) -> None:
    before = datetime.now(UTC)
    record = predict_folder(replace(config, command="cervix-batch 'my tiles' -o preds.csv"))
    after = datetime.now(UTC)
    document = stored(config)
    validate("run", document)
    provenance = document["provenance"]
    assert (provenance["host"], provenance["command"]) == (platform.node(), "cervix-batch 'my tiles' -o preds.csv")
    assert "command" not in provenance["arguments"]
    started, ended = map(datetime.fromisoformat, (provenance["started_at"], document["ended_at"]))
    slack = timedelta(seconds=0.01)  # times are written in milliseconds
    assert before - slack <= started < ended <= after + slack
    assert document["seconds"] == record.seconds == (ended - started).total_seconds()
    facts = dict(load_facts(config.out, bundle=None, tiles=50, failed=0).run)
    assert facts["command"] == "cervix-batch 'my tiles' -o preds.csv"
    times = (moment(provenance["started_at"]), moment(document["ended_at"]))
    assert (facts["host"], facts["started"], facts["ended"]) == (provenance["host"], *times)
    assert facts["took"].endswith(" s")


def test_a_run_that_stops_has_an_end_and_one_that_goes_on_has_none(config: BatchConfig) -> None:
    assert stopped(config, KeyboardInterrupt())["seconds"] > 0
    assert seen_while_running(config)["ended_at"] is None


def test_a_record_of_an_earlier_version_is_read(config: BatchConfig) -> None:
    predict_folder(config)
    document = stored(config)
    for key in ("ended_at", "seconds", "ignored_by", "folder_changes"):
        del document[key]
    for key in ("host", "command", "started_at"):
        del document["provenance"][key]
    for key in ("slide", "follow_links"):
        del document["identity"][key]
    config.record_path.write_text(json.dumps(document))
    record = RunRecord.load(config.record_path)
    assert (record.seconds, record.ignored_by, record.provenance.host, record.identity.slide) == (None, {}, None, None)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (FailureBudgetExceeded("too many tiles failed"), "failed", "too many tiles failed"),
        (BrokenPipeError(32, "Broken pipe"), "failed", "BrokenPipeError: [Errno 32] Broken pipe"),
        (OutputError("cannot read \udcff.png"), "failed", "cannot read \\udcff.png"),
    ],
    ids=["interrupt", "budget", "defect", "name"],
)
def test_it_says_why_a_run_ended(
    config: BatchConfig, validate: Validate, error: BaseException, status: str, reason: str
) -> None:
    report = stopped(config, error)
    validate("run", report)
    assert (report["status"], report["reason"]) == (status, reason)
    assert report["ok"] >= 16
    with pytest.raises(UsageError, match=f"no such table: .*its run is {status}"):
        verify_table(config.out)
    assert predict_folder(config).resumed == report["ok"]


def test_a_record_that_cannot_be_written_does_not_hide_what_ended_the_run(config: BatchConfig) -> None:
    def full_disk(*_: object) -> None:
        # A folder where the record is to be written first: no file can be made there.
        config.record_path.with_name(f".{config.record_path.name}.tmp").mkdir()
        raise FailureBudgetExceeded("too many")

    with pytest.raises(FailureBudgetExceeded, match="too many"):
        predict_folder(config, progress=full_disk)
    assert stored(config)["status"] == "running"


def test_an_old_table_keeps_its_report_until_it_is_replaced(config: BatchConfig, tmp_path: Path) -> None:
    first = predict_folder(config)
    other = replace(config, tiles=draw_folder(tmp_path / "others", 24, seed=5), overwrite=True)
    report = stopped(other, KeyboardInterrupt())
    assert (report["status"], report["found"]) == ("interrupted", 24)
    assert record_of(config.out) == first
    assert verify_table(config.out) == []
    assert stopped(replace(other, resume=False), KeyboardInterrupt())["replaces"] == first.to_json()
    last = predict_folder(other)
    assert (last.found, last.replaces) == (24, None)
    assert record_of(config.out) == last
    assert verify_table(config.out) == []


def test_the_page_of_a_table_that_is_being_replaced_has_that_table_s_facts(config: BatchConfig) -> None:
    first = predict_folder(config)
    stopped(replace(config, overwrite=True), KeyboardInterrupt())
    facts = load_facts(config.out, bundle=None, tiles=first.found, failed=0)
    assert ("batch size", "8") in facts.run
    config.out.unlink()
    stopped(replace(config, resume=False), KeyboardInterrupt())
    facts = load_facts(config.out, bundle=None, tiles=first.found, failed=0)
    assert facts.run == []
    assert "a run that made no table: interrupted" in facts.missing[0]


def test_edits_of_a_table_that_is_being_replaced_are_found(config: BatchConfig) -> None:
    predict_folder(config)
    stopped(replace(config, overwrite=True), KeyboardInterrupt())
    config.out.write_bytes(config.out.read_bytes().replace(b"ok", b"no", 1))
    assert [finding.kind for finding in verify_table(config.out)] == ["edited", "missing"]


class RowsOnly(TableTransaction):
    """Stops between its two renames."""

    def commit(self) -> NoReturn:
        (self.folder / "rows").replace(checks_path(self.out))
        raise OutputError("stopped here")


def test_between_the_row_checks_and_the_table(config: BatchConfig, tmp_path: Path) -> None:
    first = predict_folder(config)
    other = replace(config, tiles=draw_folder(tmp_path / "others", 24, seed=5), overwrite=True)
    with pytest.raises(OutputError):
        predict_folder(other, setup=RunSetup(open_table=RowsOnly))
    assert record_of(config.out) == first
    assert verify_table(config.out) == []
    whole = config.out.read_bytes()
    config.out.write_bytes(whole.replace(b"ok", b"no", 1))
    with pytest.raises(UsageError, match="a run stopped while it replaced the table: start it again"):
        verify_table(config.out)


def test_a_table_of_unknown_origin_has_no_report_to_keep(config: BatchConfig) -> None:
    config.out.write_text("not ours")
    report = stopped(replace(config, overwrite=True), KeyboardInterrupt())
    assert report["replaces"] is None
    with pytest.raises(UsageError, match="a run that made no table: interrupted"):
        verify_table(config.out)


def test_names_that_are_not_utf_8(config: BatchConfig, tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/study\xff"))
    draw_folder(root, 3)
    report = predict_folder(replace(config, tiles=root))
    assert RunRecord.load(config.record_path) == report
    assert report.identity.root == str(root.resolve())
