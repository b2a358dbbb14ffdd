"""`--hash` says in each row which bytes were predicted, and `cervix-verify --tiles` whether they are still there."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main as cervix_batch
from cervix_engine.cli.verify import main as cervix_verify
from cervix_engine.errors import ResumeMismatchError, UsageError
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.verify import verify_table, verify_tiles
from cervix_engine.table.names import unescape_name
from engine.run.support import draw_folder, drawn_tile, read_table

pytestmark = pytest.mark.timeout(120)

UNREADABLE = "z gone.png"


@pytest.fixture
def config(bundle: Bundle, tmp_path: Path) -> BatchConfig:
    """24 good tiles, one whose decoding fails, and one whose name needs an escape."""
    tiles = draw_folder(tmp_path / "study", 24)
    (tiles / "cut.png").write_bytes(drawn_tile(3)[:-40])
    (tiles / "100%.png").write_bytes(drawn_tile(4))
    return BatchConfig(tiles=tiles, out=tmp_path / "preds.csv", model=bundle.root, batch_size=4, hash_tiles=True)


def interrupt(*_: int) -> None:
    raise KeyboardInterrupt


def test_the_bytes_of_every_tile_are_hashed(config: BatchConfig) -> None:
    predict_folder(config)
    rows = read_table(config.out)
    assert len(rows) == 26
    assert list(rows[0])[-2:] == ["error", "sha256"]
    for row in rows:
        assert (
            row["sha256"] == hashlib.sha256((Path(config.tiles) / unescape_name(row["path"])).read_bytes()).hexdigest()
        )
    assert [row["path"] for row in rows if row["status"] == "failed"] == ["cut.png"]


def test_a_tile_that_cannot_be_read_has_no_hash(config: BatchConfig) -> None:
    (Path(config.tiles) / UNREADABLE).symlink_to(Path(config.tiles) / "cut.png")
    with pytest.raises(KeyboardInterrupt):
        predict_folder(config, progress=interrupt)
    (Path(config.tiles) / UNREADABLE).unlink()
    predict_folder(config)
    (row,) = [row for row in read_table(config.out) if row["path"] == UNREADABLE]
    assert (row["error"].partition(":")[0], row["sha256"]) == ("unreadable", "")


def test_the_other_columns_are_as_without_it(config: BatchConfig) -> None:
    predict_folder(config)
    plain = replace(config, out=config.out.with_name("plain.csv"), hash_tiles=False)
    predict_folder(plain)
    for row, other in zip(read_table(config.out), read_table(plain.out), strict=True):
        assert row.pop("sha256")
        assert row == other


def test_a_resume_keeps_to_the_columns_of_its_start(config: BatchConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_folder(config, progress=interrupt)
    assert predict_folder(replace(config, hash_tiles=False)).resumed > 0
    assert all(row["sha256"] for row in read_table(config.out))

    plain = replace(config, out=config.out.with_name("plain.csv"), hash_tiles=False)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(plain, progress=interrupt)
    with pytest.raises(ResumeMismatchError, match="columns"):
        predict_folder(replace(plain, hash_tiles=True))


def test_tiles_that_are_still_the_same(config: BatchConfig) -> None:
    predict_folder(config)
    assert verify_tiles(config.out, config.tiles) == []


def test_tiles_that_changed_or_went_away_are_named_by_their_row(config: BatchConfig) -> None:
    predict_folder(config)
    paths = [row["path"] for row in read_table(config.out)]
    data = bytearray((Path(config.tiles) / "100%.png").read_bytes())
    data[-9] ^= 1
    (Path(config.tiles) / "100%.png").write_bytes(data)
    (Path(config.tiles) / paths[7]).unlink()
    found = {(finding.kind, finding.line) for finding in verify_tiles(config.out, config.tiles)}
    assert found == {("tile_changed", paths.index("100%25.png") + 2), ("tile_gone", 7 + 2)}
    assert verify_table(config.out) == []


def test_a_table_without_hashes_has_nothing_to_compare(config: BatchConfig) -> None:
    predict_folder(replace(config, hash_tiles=False))
    with pytest.raises(UsageError, match="no column sha256"):
        verify_tiles(config.out, config.tiles)
    with pytest.raises(UsageError, match="no such folder"):
        verify_tiles(config.out, Path(config.tiles) / "gone")


def test_both_commands(config: BatchConfig) -> None:
    arguments = [str(config.tiles), "-o", str(config.out), "--model", str(config.model), "--hash"]
    assert CliRunner().invoke(cervix_batch, arguments).exit_code == 3
    verify = [str(config.out), "--tiles", str(config.tiles)]
    assert CliRunner().invoke(cervix_verify, verify).exit_code == 0
    (Path(config.tiles) / "cut.png").unlink()
    done = CliRunner().invoke(cervix_verify, verify)
    assert done.exit_code == 1
    line = [row["path"] for row in read_table(config.out)].index("cut.png") + 2
    assert f"line {line}: tile_gone: this row's tile cannot be read: unreadable" in done.stderr
    assert "cut" not in done.output
