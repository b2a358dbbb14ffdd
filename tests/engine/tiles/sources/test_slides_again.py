"""What a folder of slides holds by now: those that were listed are not cut again, only what is new is."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest

from cervix_engine.tiles.discover import compared, discover
from cervix_engine.tiles.listing import FolderChanges, Listing
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.sources.slides import Cutting, WholeSlides
from engine.tiles.slides.crashing import crashed_by_any

pytestmark = pytest.mark.timeout(60)

RULES = GridRules(tile_px=100)


@pytest.fixture
def listing(slides: Path, tmp_path: Path) -> Listing:
    """Of two slides, and a file that is none."""
    shutil.copytree(slides, tmp_path / "scans")
    (tmp_path / "scans" / "text.svs").write_text("no slide")
    (tmp_path / "spool").mkdir()
    return discover(WholeSlides(tmp_path / "scans", RULES), spool=tmp_path / "spool")


def test_rows_of_tiles_are_read_in_stripes(tmp_path: Path) -> None:
    source = WholeSlides(tmp_path, RULES)
    lanes = [source.lane(f"a/b.svs/x000100_y{200 * row:06}_w200_h200") for row in range(33)]
    assert lanes == [0] * 16 + [1] * 16 + [2]
    assert source.lane("a/b.svs/slide") is None


def names_of(listing: Listing, slide: str = "") -> list[bytes]:
    return [name for name, *_ in listing.records() if name.startswith(slide.encode())]


def test_what_was_listed_is_not_cut_again(listing: Listing, tmp_path: Path) -> None:
    source, names = WholeSlides(tmp_path / "scans", RULES), names_of(listing)
    assert [name for name, *_ in Cutting(source, listed=names, cut_file=crashed_by_any)] == names
    # A cut would have shown.
    assert [name for name, *_ in Cutting(source, cut_file=crashed_by_any)] == [
        b"aperio.svs/slide",
        b"generic.tiff/slide",
        b"text.svs/slide",
    ]


def test_slides_that_came_and_went_are_counted_by_their_tiles(listing: Listing, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    assert compared(listing, listing.paths, spool=tmp_path).changes == FolderChanges(0, 0)
    (scans / "aperio.svs").unlink()
    shutil.copy(scans / "generic.tiff", scans / "another.tiff")
    (scans / "generic.tiff").touch()  # its tiles' own rows show a change
    assert compared(listing, listing.paths, spool=tmp_path).changes == FolderChanges(
        added=len(names_of(listing, "generic.tiff/")), removed=len(names_of(listing, "aperio.svs/"))
    )


def test_a_preview_that_is_not_there_yet_is_made(listing: Listing, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    (seen / "generic.tiff.png").write_bytes(b"there already")
    source = WholeSlides(tmp_path / "scans", RULES, previews=seen)
    assert sorted(name for name, *_ in source.walk_again(names_of(listing))) == names_of(listing)
    assert {path.name for path in seen.iterdir()} == {"aperio.svs.png", "generic.tiff.png"}
    assert cv2.imread(str(seen / "aperio.svs.png")) is not None
    assert (seen / "generic.tiff.png").read_bytes() == b"there already"
