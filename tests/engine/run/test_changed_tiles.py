"""A tile that is not the file that was listed any more is never predicted in its name: it gets a failed row."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import TileReadError
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.preprocess import read_tile
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import TileStamp
from engine.run.support import draw_folder, drawn_tile, read_table, run_setup

pytestmark = pytest.mark.timeout(120)

CHANGED = "tile_00000.jpg"


def touched(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def rewritten(path: Path) -> None:
    """Another tile, with the old one's time."""
    status = path.stat()
    path.write_bytes(drawn_tile(777, ".jpg"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "tile_00004.png")


CHANGES = pytest.mark.parametrize("change", [touched, rewritten, replaced_by_a_link])
Change = Callable[[Path], None]


@pytest.fixture
def config(bundle: Bundle, tmp_path: Path) -> BatchConfig:
    tiles = draw_folder(tmp_path / "study", 24)
    return BatchConfig(tiles=tiles, out=tmp_path / "preds.csv", model=bundle.root, batch_size=4)


def assert_only_that_one_failed(config: BatchConfig) -> None:
    rows = read_table(config.out)
    failed = [(row["path"], row["error"], row["pred"]) for row in rows if row["status"] == "failed"]
    assert failed == [(CHANGED, "changed: not the file that was listed: another size or time of change", "")]
    assert len(rows) == 24


@CHANGES
def test_between_listing_and_reading(config: BatchConfig, change: Change) -> None:
    setup = run_setup(once_listed=lambda: change(Path(config.tiles) / CHANGED))
    assert predict_folder(config, setup=setup).failures == {"changed": 1}
    assert_only_that_one_failed(config)


@CHANGES
def test_before_a_resume(config: BatchConfig, change: Change) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    # The folder's own tiles come last: behind those of "slide_a" and "slide_b".
    with pytest.raises(KeyboardInterrupt):
        predict_folder(config, progress=stop)
    change(Path(config.tiles) / CHANGED)
    report = predict_folder(config)
    assert report.resumed > 0
    assert report.failures == {"changed": 1}
    assert_only_that_one_failed(config)


def test_the_stamp_is_the_file_s_behind_a_link(tmp_path: Path) -> None:
    draw_folder(tmp_path / "study", 1)
    (tmp_path / "study" / "link.jpg").symlink_to("tile_00000.jpg")
    listing = discover(Folder(tmp_path / "study"), spool=tmp_path)
    for tile in listing:
        assert read_tile(tmp_path / "study" / tile.path, stamp=tile.stamp)


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tile.png"
    path.write_bytes(b"12345")
    status, fstat = path.stat(), os.fstat

    def fstat_then_grown(descriptor: int) -> os.stat_result:
        before = fstat(descriptor)
        with path.open("ab") as file:
            file.write(b"6")
        return before

    monkeypatch.setattr("cervix_engine.tiles.preprocess.os.fstat", fstat_then_grown)
    with pytest.raises(TileReadError, match="changed while it was read"):
        read_tile(path, stamp=TileStamp(status.st_size, status.st_mtime_ns))
