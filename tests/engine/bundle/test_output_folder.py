from __future__ import annotations

from pathlib import Path

import pytest

from cervix_engine.bundle.output_folder import check_output, whole_folder
from cervix_engine.errors import OutputError, OutputExistsError, TileReadError, UsageError


def make_bundle(folder: Path, text: str = "old") -> Path:
    folder.mkdir()
    (folder / "bundle.json").write_text(text)
    return folder


def test_it_is_there_when_the_block_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "new/deep/bundle"
    check_output(out, overwrite=False)
    assert not out.parent.exists()
    with whole_folder(out, overwrite=False) as folder:
        (folder / "bundle.json").write_text("new")
        assert not out.exists()
    assert (out / "bundle.json").read_text() == "new"
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_when_it_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def fill_half(folder: Path) -> None:
        (folder / "half").touch()
        raise error

    with pytest.raises(error), whole_folder(tmp_path / "bundle", overwrite=False) as folder:
        fill_half(folder)
    assert list(tmp_path.iterdir()) == []


def test_the_old_bundle_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "bundle")
    with pytest.raises(KeyboardInterrupt), whole_folder(out, overwrite=True):
        raise KeyboardInterrupt
    assert (out / "bundle.json").read_text() == "old"
    with whole_folder(out, overwrite=True) as folder:
        (folder / "bundle.json").write_text("new")
        assert (out / "bundle.json").read_text() == "old"
    assert (out / "bundle.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_existing_bundle_needs_overwrite(tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "bundle")
    with pytest.raises(OutputExistsError, match="--overwrite to replace it"):
        check_output(out, overwrite=False)
    check_output(out, overwrite=True)


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="is no bundle"):
            check_output(tmp_path, overwrite=overwrite)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputExistsError, match="is a file"):
        check_output(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="cannot write to"):
        check_output(tmp_path / "file/bundle", overwrite=True)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    with whole_folder(out, overwrite=False) as folder:
        (folder / "bundle.json").touch()
    assert (out / "bundle.json").is_file()


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(OutputExistsError), whole_folder(out, overwrite=False):
        make_bundle(out)
    assert (out / "bundle.json").read_text() == "old"


def test_errors_of_the_file_system_are_translated_and_others_are_not(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), whole_folder(tmp_path / "a", overwrite=False):
        raise OSError(28, "No space left on device")
    with pytest.raises(TileReadError), whole_folder(tmp_path / "a", overwrite=False):
        raise TileReadError("unreadable", "gone")


@pytest.mark.parametrize("other", ["notes.txt", "golden/mine.png", "tiles/a.jpg"])
def test_a_bundle_that_holds_more_than_a_bundle_is_never_replaced(tmp_path: Path, other: str) -> None:
    out = make_bundle(tmp_path / "bundle")
    (out / other).parent.mkdir(exist_ok=True)
    (out / other).touch()
    with pytest.raises(OutputExistsError, match=f"holds more than a bundle, {other}"):
        check_output(out, overwrite=True)


@pytest.mark.parametrize("left", ["certificates/x.json", "engines/x.engine", "model.onnx", ".bundle.json.tmp"])
def test_what_an_export_that_was_killed_left_is_replaced(tmp_path: Path, left: str) -> None:
    out = make_bundle(tmp_path / "bundle")
    (out / left).parent.mkdir(exist_ok=True)
    (out / left).touch()
    check_output(out, overwrite=True)


def test_a_bundle_is_not_replaced_at_its_link_nor_with_what_is_read(tmp_path: Path) -> None:
    out, link = make_bundle(tmp_path / "bundle"), tmp_path / "link"
    link.symlink_to(out)
    with pytest.raises(UsageError, match="is a link"):
        check_output(link, overwrite=True)
    for given in (out, out / "bundle.json"):
        with pytest.raises(UsageError, match="which is read"):
            check_output(out, overwrite=True, inputs=(None, given))
    check_output(out, overwrite=True, inputs=(tmp_path,))
