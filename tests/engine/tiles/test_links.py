"""Links are followed within the folder, and out of it where that is asked for; loops end."""

from __future__ import annotations

from pathlib import Path

import pytest

from cervix_engine.errors import UsageError
from cervix_engine.tiles.discover import compared, discover
from cervix_engine.tiles.listing import FolderChanges
from cervix_engine.tiles.sources.folder import Folder

from .tile_folders import paths, touch


def test_links_inside_the_root_are_tiles_and_links_out_of_it_are_not(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(root, "a/real.png")
    touch(tmp_path, "outside.png", "study-2/near.png")
    (root / "relative.png").symlink_to("a/real.png")
    (root / "absolute.png").symlink_to(root / "a/real.png")
    (root / "out.png").symlink_to(tmp_path / "outside.png")
    (root / "near.png").symlink_to("../study-2/near.png")  # a path that only begins like the root's
    (root / "dangling.png").symlink_to("a/gone.png")
    listing = discover(Folder(root), spool=spool)
    assert paths(listing) == ["a/real.png", "absolute.png", "relative.png"]
    assert listing.ignored_by == {"link": 2, "gone": 1}


def test_links_to_folders_are_not_entered(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(root, "a/1.png")
    touch(tmp_path, "elsewhere/2.png")
    (root / "again").symlink_to("a", target_is_directory=True)
    (root / "a/up").symlink_to("..", target_is_directory=True)
    (root / "out").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "folder.png").symlink_to("a", target_is_directory=True)
    listing = discover(Folder(root), spool=spool)
    assert paths(listing) == ["a/1.png"]
    assert listing.ignored_by == {"link": 4}


def test_link_loops_end(root: Path, spool: Path) -> None:
    touch(root, "a.png")
    (root / "self.png").symlink_to("self.png")
    (root / "ping.png").symlink_to("pong.png")
    (root / "pong.png").symlink_to("ping.png")
    listing = discover(Folder(root), spool=spool)
    assert paths(listing) == ["a.png"]
    assert listing.ignored_by == {"gone": 3}


def test_the_root_may_be_a_link(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(root, "a.png")
    (root / "b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    listing = discover(Folder(tmp_path / "link"), spool=spool)
    assert paths(listing) == ["a.png", "b.png"]


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A dataset as Hugging Face's cache holds it: links from names to blobs, beside the folder of names."""
    top = tmp_path / "datasets--smears"
    revision = top / "snapshots" / "0123abc"
    (revision / "slide_1").mkdir(parents=True)
    (top / "blobs").mkdir()
    for number, name in enumerate(["a.jpg", "slide_1/b.jpg", "slide_1/c.png", "README.md"]):
        blob = top / "blobs" / f"{number:064x}"
        blob.write_bytes(b"x" * (number + 1))
        up = "../" * (2 + name.count("/"))
        (revision / name).symlink_to(f"{up}blobs/{blob.name}")
    return revision


def test_a_snapshot_of_links_is_refused_as_such_and_followed_when_asked(snapshot: Path, spool: Path) -> None:
    with pytest.raises(
        UsageError, match=r"files \(3 links that lead elsewhere, 1 with another suffix\); --follow-links"
    ):
        discover(Folder(snapshot), spool=spool)
    listing = discover(Folder(snapshot, follow_links=True), spool=spool)
    assert paths(listing) == ["a.jpg", "slide_1/b.jpg", "slide_1/c.png"]
    assert listing.ignored_by == {"suffix": 1}
    # The stamps are those of the real files.
    assert [tile.stamp.size_bytes for tile in listing if tile.stamp] == [1, 2, 3]
    assert compared(listing, listing.paths, spool=spool).changes == FolderChanges(0, 0)
    # From above, the blobs lie inside the root, and their own names have no suffix.
    above = discover(Folder(snapshot.parents[1]), spool=spool)
    assert paths(above) == [f"snapshots/0123abc/{name}" for name in ("a.jpg", "slide_1/b.jpg", "slide_1/c.png")]


def test_a_staged_folder_of_links_to_files_and_folders_elsewhere(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(tmp_path, "work/ab/1/x.png", "work/cd/slide_2/y.png", "work/cd/slide_2/deep/z.png", "work/notes.txt")
    (root / "x.png").symlink_to(tmp_path / "work/ab/1/x.png")
    (root / "slide_2").symlink_to(tmp_path / "work/cd/slide_2", target_is_directory=True)
    (root / "notes.txt").symlink_to(tmp_path / "work/notes.txt")
    (root / "gone.png").symlink_to(tmp_path / "work/gone.png")
    with pytest.raises(UsageError, match=r"\(2 links that lead elsewhere, 1 broken link or gone meanwhile, 1 with"):
        discover(Folder(root), spool=spool)
    listing = discover(Folder(root, follow_links=True), spool=spool)
    assert paths(listing) == ["slide_2/deep/z.png", "slide_2/y.png", "x.png"]
    assert listing.ignored_by == {"suffix": 1, "gone": 1}


def test_followed_links_that_lead_back_end(root: Path, spool: Path, tmp_path: Path) -> None:
    touch(root, "a/b/1.png")
    touch(tmp_path, "elsewhere/2.png")
    (root / "a/b/up").symlink_to("..", target_is_directory=True)
    (root / "self").symlink_to(".", target_is_directory=True)
    (root / "loop").symlink_to("loop")
    (root / "out").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(root, target_is_directory=True)
    listing = discover(Folder(root, follow_links=True), spool=spool)
    assert paths(listing) == ["a/b/1.png", "out/2.png"]
    assert listing.ignored_by == {"link_loop": 3, "suffix": 1}
