"""Where commands may write: over what an earlier one of the kind wrote, and over nothing else, least of all inputs."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cervix_engine.errors import CervixError, OutputError, OutputExistsError, UsageError
from cervix_engine.files import atomic_path
from cervix_engine.outputs.places import (
    json_start,
    local_file,
    require_apart,
    require_free,
    require_free_folder,
    require_own,
)

OLD = b"kept as it is"


@contextmanager
def a_socket(path: Path) -> Iterator[None]:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's whole name must be short
        server.bind(path.name)
        os.chdir(here)
        yield


def refusal(check: Callable[[], None]) -> tuple[int, str]:
    with pytest.raises(CervixError) as refused:
        check()
    assert "\n" not in str(refused.value)
    return refused.value.exit_code, str(refused.value)


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    fifo, link, plugged = tmp_path / "fifo", tmp_path / "link", tmp_path / "socket"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    with a_socket(plugged):
        for path in (fifo, link, plugged):
            mode = path.lstat().st_mode
            for check in (lambda: require_free(path, overwrite=True), lambda: require_own(path, b"")):  # noqa: B023
                code, message = refusal(check)
                assert (code, "is no regular file" in message) == (2, True)
            with pytest.raises(OutputError, match="no regular file"), atomic_path(path):
                pass
            assert path.lstat().st_mode == mode
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize("name", [".", "", "/", ".."])
def test_a_place_has_a_name(name: str) -> None:
    for check in (
        lambda: require_free(Path(name), overwrite=True),
        lambda: require_free_folder(Path(name), ".geojson", overwrite=True),
    ):
        code, message = refusal(check)
        assert (code, "names no place of its own" in message) == (2, True)


def test_a_file_is_replaced_when_asked(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        require_free(tmp_path / "old")
    require_free(tmp_path / "old", overwrite=True)
    require_free(tmp_path / "new")
    with pytest.raises(UsageError, match="is a folder"):
        require_free(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="no such folder"):
        require_free(tmp_path / "none/new")


def test_an_input_is_no_output_by_any_of_its_names(tmp_path: Path) -> None:
    read, link, folder = tmp_path / "read.csv", tmp_path / "link.csv", tmp_path / "tiles"
    read.write_bytes(OLD)
    link.symlink_to(read)
    folder.mkdir()
    (tmp_path / "also").symlink_to(folder)
    for out, given in ((read, read), (link, read), (read, link), (tmp_path / "tiles/../read.csv", read)):
        with pytest.raises(UsageError, match="is read, too"):
            require_free(out, overwrite=True, inputs=(None, given))
    for out in (folder / "new.csv", tmp_path / "also/new.csv"):
        with pytest.raises(UsageError, match="would lie in"):
            require_apart(out, (folder,))
    require_free(tmp_path / "other.csv", inputs=(read, folder))


@pytest.mark.parametrize("other", ["a.png", "b.geojson/", ".hidden", "c.GEOJSON"])
def test_a_folder_that_holds_anything_else_is_never_replaced(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "geo"
    folder.mkdir()
    (folder / "A.geojson").touch()
    (folder / other).mkdir() if other.endswith("/") else (folder / other).touch()
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=f"{other.rstrip('/')}: name another folder"):
            require_free_folder(folder, ".geojson", overwrite=overwrite)


def test_a_folder_is_replaced_when_asked_but_not_at_its_link(tmp_path: Path) -> None:
    folder, link = tmp_path / "geo", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    (folder / "A.geojson").touch()
    (folder / ".DS_Store").touch()
    require_free_folder(folder, ".geojson", overwrite=True)
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        require_free_folder(folder, ".geojson")
    with pytest.raises(UsageError, match="is a link"):
        require_free_folder(link, ".geojson", overwrite=True)
    (folder / "B.geojson").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"B\.geojson"):
        require_free_folder(folder, ".geojson", overwrite=True)


def test_a_folder_neither_is_nor_holds_nor_lies_in_what_is_read(tmp_path: Path) -> None:
    tiles = tmp_path / "a/tiles"
    tiles.mkdir(parents=True)
    for out, words in ((tiles, "is read, too"), (tmp_path / "a", "which is read"), (tiles / "geo", "would lie in")):
        with pytest.raises(UsageError, match=words):
            require_free_folder(out, ".geojson", overwrite=True, inputs=(tiles,))


def test_without_being_asked_a_command_replaces_its_own_files_alone(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    start = json_start("cervix/bench/2")
    require_own(out, start)
    for own in (b"", b'{\n  "schema": "cervix/bench/1",\n'):
        out.write_bytes(own)
        require_own(out, start)
    for other in (OLD, b'{\n  "schema": "cervix/bundle/1",\n', b"{"):
        out.write_bytes(other)
        with pytest.raises(OutputExistsError, match="not of this command"):
            require_own(out, start)


def test_a_pattern_or_address_is_no_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "coords.csv").touch()
    assert local_file(tmp_path / "coords.csv") == tmp_path / "coords.csv"
    assert [local_file(name) for name in (None, "{slide}_x{x}_y{y}", "s3://bucket/tiles", "-", "x" * 5000)] == [
        None
    ] * 5
