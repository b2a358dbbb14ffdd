"""A file is whole or is the one that lay there before."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cervix_engine.errors import UsageError
from cervix_engine.files import (
    atomic_path,
    cache_beside,
    local_path,
    sha256_bytes,
    sha256_file,
    without_keys,
    write_json,
)

MIB = 2**20


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "data").write_bytes(data[:size])
    assert sha256_file(tmp_path / "data") == hashlib.sha256(data[:size]).hexdigest()


@given(st.binary())
def test_the_digest_of_bytes_takes_views_too(data: bytes) -> None:
    assert sha256_bytes(data) == sha256_bytes(memoryview(data)) == hashlib.sha256(data).hexdigest()


def test_an_atomic_write_replaces_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == target.parent
    assert target.read_text() == "new"
    assert names_in(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("failure", [RuntimeError, OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("ne")
            raise failure("in the middle")

    with pytest.raises(failure, match="in the middle"):
        write_half()
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["table.csv"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "table.csv"):
        pass
    assert names_in(tmp_path) == []


def test_what_a_killed_write_left_does_not_disturb_the_next(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    with atomic_path(target) as temporary:
        temporary.write_text("first")
    temporary.write_text("half of a much longer text, left by a kill")
    with atomic_path(target) as temporary:
        temporary.write_text("second")
    assert target.read_text() == "second"
    assert names_in(tmp_path) == ["table.csv"]


def test_bytes_are_durable_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    synced: list[tuple[int, str]] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, target.read_text()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        inode = temporary.stat().st_ino
    assert synced == [(inode, "old"), (tmp_path.stat().st_ino, "new")]


def test_a_disk_that_fails_at_the_last_moment_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.json"
    write_json(target, {"run": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(target, {"run": 2})
    assert json.loads(target.read_text()) == {"run": 1}
    assert names_in(tmp_path) == ["report.json"]


def test_json_keeps_every_letter(tmp_path: Path) -> None:
    data = {"schema": "cervix/test/1", "label": "Zellkörper µm – 細胞", "numbers": [0.1, 1e-9, 3], "none": None}
    write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == data
    assert "細胞" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "a.json", {"loss": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": value})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 0.5}
    assert names_in(tmp_path) == ["a.json"]


@pytest.mark.parametrize("made", ["models/cervix", "models/.", "models"])
def test_a_cache_lies_beside_what_is_made_wherever_the_home_is(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    beside = tmp_path / made / ".." if made.endswith("cervix") else tmp_path
    assert cache_beside(Path(made)) == Path(os.path.normpath(beside)) / ".cervix-cache"


@pytest.mark.parametrize("name", ["s3://bucket/a", "https://x.example/a.zip", "file:///tmp/a"])
def test_a_url_is_no_path_and_is_said_as_given(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(name)} is a URL"):
        local_path(name)


@pytest.mark.parametrize("name", ["a//b", "./s3:/a", "s3:a", "a/https://b", "/", "slide 1: A"])
def test_other_names_are_paths(name: str) -> None:
    assert local_path(name) == Path(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/a/b.png", "https://…@host/a/b.png"),
        ("s3://bucket/a?versionId=secret&b=1", "s3://bucket/a?…"),
        ("'https://host/a#secret' --out x.csv", "'https://host/a#…' --out x.csv"),
        ("https://host/a me@example.org what?", "https://host/a me@example.org what?"),
        ("/data/a@b/c?.png", "/data/a@b/c?.png"),
    ],
)
def test_addresses_are_shown_without_their_keys(text: str, shown: str) -> None:
    assert without_keys(text) == shown
