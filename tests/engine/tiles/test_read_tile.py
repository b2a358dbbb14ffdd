"""A tile's bytes are read as they are, or it is said why not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cervix_engine.errors import ListingError, TileReadError
from cervix_engine.tiles.preprocess import read_tile

from .decoded_tiles import FILES


def test_the_bytes_are_read_as_they_are(tmp_path: Path) -> None:
    for name, data in {
        "empty.jpg": b"",
        "tile.jpg": FILES["jpeg_420"],
        "neuf \n'é.png": bytes(range(256)) * 9000,
    }.items():
        (tmp_path / name).write_bytes(data)
        assert read_tile(tmp_path / name) == data


def test_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"tile\xff.jpg")
    path.write_bytes(b"data")
    assert read_tile(path) == b"data"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.jpg").write_bytes(b"data")
    (tmp_path / "link.jpg").symlink_to("real.jpg")
    assert read_tile(tmp_path / "link.jpg") == b"data"


def read_refusal(path: Path) -> TileReadError:
    with pytest.raises(TileReadError) as caught:
        read_tile(path)
    assert "tile" not in str(caught.value)  # the file's name
    assert caught.value.filename is None
    return caught.value


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.timeout(60)
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "tile.d.jpg").mkdir()
    os.mkfifo(tmp_path / "tile.fifo.jpg")
    (tmp_path / "tile.zero.jpg").symlink_to("/dev/zero")
    before = open_descriptors()
    for name in ("tile.d.jpg", "tile.fifo.jpg", "tile.zero.jpg"):
        assert str(read_refusal(tmp_path / name)) == "not_a_file: expected a regular file"
    assert open_descriptors() == before


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    assert str(read_refusal(tmp_path / "tile.jpg")) == "unreadable: No such file or directory"
    (tmp_path / "tile.loop.jpg").symlink_to("tile.loop.jpg")
    assert read_refusal(tmp_path / "tile.loop.jpg").kind == "unreadable"
    assert str(read_refusal(tmp_path / ("tile" * 100))) == "unreadable: File name too long"


def test_a_name_that_no_file_can_have_is_unreadable(tmp_path: Path) -> None:
    for name in ("tile\0.jpg", "tile\ud800.jpg"):
        assert read_refusal(tmp_path / name).kind == "unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "tile.jpg").write_bytes(b"data")
    (tmp_path / "tile.jpg").chmod(0)
    assert str(read_refusal(tmp_path / "tile.jpg")) == "unreadable: Permission denied"


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tile.jpg").open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no space
    assert read_refusal(tmp_path / "tile.jpg").kind == "too_large"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_machine_that_has_run_out_is_not_the_tiles_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def exhausted(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    (tmp_path / "tile.png").write_bytes(b"x")
    monkeypatch.setattr("cervix_engine.tiles.preprocess._open_without_waiting", exhausted)
    with pytest.raises(ListingError, match=os.strerror(number)):
        read_tile(tmp_path / "tile.png")
