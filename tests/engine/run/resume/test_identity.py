"""A run goes on only as it began: with the same tiles, bundle, batch size and precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cervix_engine.errors import ResumeMismatchError
from engine.run.resume.stopped_run import BATCH, TILES, Run, assert_finished
from engine.run.support import draw_folder, tiny_onnx
from engine.run.support import make_bundle as make_bundle_at

pytestmark = pytest.mark.timeout(300)


def test_another_batch_size_is_refused(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    with pytest.raises(ResumeMismatchError, match=r"batch_size 2, this one has 3.*--no-resume"):
        run(batch_size=3)
    run()
    assert_finished(run, undisturbed)


def test_another_bundle_is_refused(run: Run, undisturbed: bytes, tmp_path: Path) -> None:
    run.interrupt()
    other = make_bundle_at(tmp_path / "other", model=tiny_onnx(scaled=True)).root
    (other / "note.txt").write_text("another bundle")
    from cervix_engine.bundle.bundle import seal

    seal(other)
    with pytest.raises(ResumeMismatchError, match="bundle_digest"):
        run(model=other)
    assert len(run.shards()) > 0
    run()
    assert_finished(run, undisturbed)


def test_the_same_names_in_another_folder_are_refused(run: Run, undisturbed: bytes, tmp_path: Path) -> None:
    run.interrupt()
    other = draw_folder(tmp_path / "other study", TILES, seed=2)
    with pytest.raises(ResumeMismatchError, match="other study"):
        run(tiles=other)
    run()
    assert_finished(run, undisturbed)


def test_the_same_folder_by_another_path_goes_on(
    run: Run, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.interrupt()
    link = tmp_path / "link"
    link.symlink_to(run.config.tiles, target_is_directory=True)
    monkeypatch.chdir(Path(run.config.tiles).parent)
    run.interrupt(3, tiles=link)
    run(tiles=Path(Path(run.config.tiles).name))
    assert_finished(run, undisturbed)


def test_another_precision_is_refused(run: Run, undisturbed: bytes, tmp_path: Path) -> None:
    from cervix_engine.bundle.bundle import seal

    both = make_bundle_at(tmp_path / "both").root
    (both / "model.fp16.onnx").write_bytes(tiny_onnx(half=True))
    seal(both)
    run.interrupt(model=both, precision="fp16")
    for other in ("fp32", "bf16"):
        with pytest.raises(ResumeMismatchError, match=f"precision fp16, this one has {other}"):
            run(model=both, precision=other)
    assert run(model=both).backend.precision == "fp16"  # auto takes the partial run's own


def test_the_batch_size_and_workers_of_a_resume_are_free_when_not_given(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    report = run(batch_size=None, workers=5)
    assert report.batch_size == BATCH
    assert_finished(run, undisturbed)


def test_a_resume_keeps_to_its_stored_listing(run: Run, undisturbed: bytes, tmp_path: Path) -> None:
    moving = tmp_path / "moving" / Path(run.config.tiles).name
    shutil.copytree(run.config.tiles, moving)
    run.interrupt(tiles=moving)
    shutil.copy(moving / "tile_00000.jpg", moving / "later.jpg")
    report = run(tiles=moving)
    assert report.found == TILES
    assert run.out.read_bytes() == undisturbed
