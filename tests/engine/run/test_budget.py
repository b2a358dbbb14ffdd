"""A run stops, resumable, when the input rather than a tile is at fault; and names stay out of what it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.errors import FailureBudgetExceeded, ListingError, UsageError
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.budget import SHARE_AFTER_TILES, FailureBudget
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.stream import StreamSettings, batches_of, stream
from cervix_engine.run.transaction import State, TableTransaction
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import TileRef
from engine.run.support import CONTRACT, draw_folder, read_table

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    ("text", "budget"),
    [("0", FailureBudget(count=0)), ("100", FailureBudget(count=100)), ("10%", FailureBudget(share=0.1))],
)
def test_a_budget_is_a_count_or_a_share(text: str, budget: FailureBudget) -> None:
    assert FailureBudget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "%", "-1", "1.5", "101%", "ten", "1e3", "²"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a count"):
        FailureBudget.parse(text)


def test_a_count_holds_from_the_first_tile_and_a_share_from_the_thousandth() -> None:
    FailureBudget(count=2).check(failed=2, seen=2)
    with pytest.raises(FailureBudgetExceeded, match="3 of 3 tiles failed"):
        FailureBudget(count=2).check(failed=3, seen=3)
    FailureBudget(share=0.1).check(failed=SHARE_AFTER_TILES - 1, seen=SHARE_AFTER_TILES - 1)
    FailureBudget(share=0.1).check(failed=100, seen=1000)
    with pytest.raises(FailureBudgetExceeded, match=r"101 of 1000 .* 10%"):
        FailureBudget(share=0.1).check(failed=101, seen=1000)


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """40 tiles, ten of them empty files."""
    root = draw_folder(tmp_path / "patient 0815", 40)
    for tile in sorted(root.rglob("tile_*"))[5:15]:
        tile.write_bytes(b"")
    return root


def test_a_run_over_its_budget_goes_on_with_a_larger_one(bundle: Bundle, spoilt: Path, tmp_path: Path) -> None:
    out = tmp_path / "preds.csv"
    config = BatchConfig(spoilt, out, bundle.root, batch_size=4, budget=FailureBudget(count=3))
    with pytest.raises(FailureBudgetExceeded):
        predict_folder(config)
    assert not out.exists()
    left = TableTransaction(out)
    assert left.load() is State.PARTIAL
    assert left.journal.tiles > 0
    result = CliRunner().invoke(
        main, [str(spoilt), "-o", str(out), "--model", str(bundle.root), "--max-failures", "50%"]
    )
    assert result.exit_code == 3
    rows = read_table(out)
    assert len(rows) == 40
    assert sum(row["status"] == "failed" for row in rows) == 10


def test_a_share_that_vanishes_stops_the_run(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "share", 40)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("tile_*"))
    settings = StreamSettings(Folder(root), contract=CONTRACT, batch_size=4, workers=1)
    tiles = [TileRef(index, name) for index, name in enumerate(names)]
    results = stream(batches_of(tiles, 4), backend=FakeBackend(), settings=settings, stats=StreamStats())
    next(results)
    shutil.move(root, tmp_path / "elsewhere")
    root.mkdir()  # an unmounted share leaves its empty mount point
    with pytest.raises(ListingError, match="gone or was replaced"):
        list(results)


def test_one_tile_that_vanishes_is_a_row(bundle: Bundle, tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "study", 8)
    (root / "dangling.png").write_bytes(b"x")
    names = [TileRef(0, "dangling.png")]
    (root / "dangling.png").unlink()
    settings = StreamSettings(Folder(root), contract=CONTRACT, batch_size=4, workers=1)
    (result,) = stream(batches_of(names, 4), backend=FakeBackend(), settings=settings, stats=StreamStats())
    assert str(result.outcomes[0]).count("unreadable") == 1


def test_names_of_tiles_are_in_the_log_file_only(bundle: Bundle, spoilt: Path, tmp_path: Path) -> None:
    arguments = [str(spoilt), "-o", str(tmp_path / "preds.csv"), "--model", str(bundle.root)]
    log = tmp_path / "details.log"
    result = CliRunner().invoke(main, [*arguments, "--log-file", str(log)])
    assert result.exit_code == 3
    for name in ("tile_", "slide_a", "region", "0815"):
        assert name not in result.output
    assert log.read_text().count("empty: the file has 0 bytes") == 10
    assert "tile_" in log.read_text()
