"""A journal that is torn, damaged or altered costs work, never a row."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from typing import Any

import jsonschema
import pytest

from cervix_engine.errors import CervixError, OutputError, ResumeMismatchError
from engine.run.resume.stopped_run import Run, assert_finished

pytestmark = pytest.mark.timeout(300)


def test_every_line_is_of_the_schema(run: Run) -> None:
    text = (resources.files("cervix_engine") / "schemas" / "journal.schema.json").read_text(encoding="utf-8")
    validator = jsonschema.Draft202012Validator(json.loads(text))
    run.stop_before_the_commit()
    lines = [json.loads(line) for line in run.journal.read_text(encoding="ascii").splitlines()]
    assert len(lines) == 1 + 9 + 1
    for line in lines:
        validator.validate(line)
        for key in line["entry"].keys() - {"ignored_by"}:  # journals of earlier versions have none
            assert not validator.is_valid({**line, "entry": {k: v for k, v in line["entry"].items() if k != key}})
        assert not validator.is_valid({**line, "entry": {**line["entry"], "more": 1}})


@pytest.mark.parametrize("torn", [b"{", b'{"first_batch": 9, "bat', b"\0\0\0", b"x" * 5000])
def test_a_torn_last_line_is_done_again(run: Run, undisturbed: bytes, torn: bytes) -> None:
    run.interrupt()
    with run.journal.open("ab") as file:
        file.write(torn)
    run.interrupt(3)  # appends behind the mended end
    assert run.entries()[-1]["ok"] > 0
    run()
    assert_finished(run, undisturbed)


def test_every_way_to_tear_the_last_line(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    whole = run.journal.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    kept = run.out.parent / "kept"
    shutil.copytree(run.folder, kept)
    for cut in range(start, len(whole), 11):
        shutil.copytree(kept, run.folder, dirs_exist_ok=True)
        run.journal.write_bytes(whole[:cut])
        run()
        assert run.out.read_bytes() == undisturbed
        run.out.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"garbage",
        b"\0" * 40,
        b"\xff\xfe",
        b"12",
        b"null",
        b'"text"',
        b"[]",
        b"{}",
        b'{"first_batch": 3}',
        b'{"first_batch": 3, "batches": 3, "ok": 6, "failures": {}, "sha256": "x", "more": 1}',
        b'{"assembled": 7}',
    ],
)
def test_a_damaged_middle_line_is_done_again(run: Run, undisturbed: bytes, damage: bytes) -> None:
    run.interrupt()
    lines = run.journal.read_bytes().split(b"\n")
    lines[2] = damage
    run.journal.write_bytes(b"\n".join(lines))
    run()
    assert_finished(run, undisturbed)


@pytest.mark.parametrize(
    "change", [{"first_batch": 4}, {"batches": 4}, {"ok": 7}, {"failures": {"empty": 1}}, {"sha256": "0" * 64}], ids=str
)
def test_a_line_that_says_something_else_is_done_again(run: Run, undisturbed: bytes, change: dict[str, Any]) -> None:
    run.interrupt()
    lines = run.journal.read_bytes().splitlines(keepends=True)
    line = json.loads(lines[2])
    line["entry"].update(change)
    lines[2] = json.dumps(line).encode() + b"\n"
    run.journal.write_bytes(b"".join(lines))
    run()
    assert_finished(run, undisturbed)


def test_any_flipped_bit_in_the_journal_is_noticed(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    kept = run.out.parent / "kept"
    shutil.copytree(run.folder, kept)
    whole = run.journal.read_bytes()
    for at in range(3, len(whole), 131):
        shutil.copytree(kept, run.folder, dirs_exist_ok=True)
        run.journal.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            run()
        except OutputError as error:
            assert "--no-resume" in str(error)  # noqa: PT017 - either outcome is right
            continue
        assert run.out.read_bytes() == undisturbed
        run.out.unlink()


@pytest.mark.parametrize("header", [b"", b"garbage", b"{}", b"[]", b"7", b'{"schema": "cervix/journal/9"}'])
def test_a_journal_without_its_first_line_is_refused_until_discarded(
    run: Run, undisturbed: bytes, header: bytes
) -> None:
    run.interrupt()
    _, *rest = run.journal.read_bytes().split(b"\n")
    run.journal.write_bytes(b"\n".join([header, *rest]))
    with pytest.raises(OutputError, match="--no-resume"):
        run()
    run(resume=False)
    assert_finished(run, undisturbed)


def test_an_empty_journal_is_refused_until_discarded(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    run.journal.write_bytes(b"")
    with pytest.raises(OutputError, match="--no-resume"):
        run()
    run(resume=False)
    assert_finished(run, undisturbed)


def test_a_damaged_or_missing_listing_stops_the_run(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    listing = run.folder / "listing"
    listing.write_bytes(listing.read_bytes()[:-9])
    with pytest.raises(ResumeMismatchError, match="listing"):
        run()
    listing.unlink()
    with pytest.raises(CervixError, match="listing"):
        run()
    run(resume=False)
    assert_finished(run, undisturbed)
