"""Which files of a folder become rows, what a run says of the others, and of a folder that changes under it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.bench import main as bench
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.record import RunRecord
from engine.run.support import Invoke, draw_folder, drawn_tile, read_table

Validate = Callable[[str, Any], None]


def interrupt(_done: int, _found: int) -> None:
    """As progress: somebody presses Ctrl-C after the first batch."""
    raise KeyboardInterrupt


def paths_in(table: Path) -> list[str]:
    return [row["path"] for row in read_table(table)]


def draw(*paths: Path) -> None:
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn_tile(number))


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Names that are links to blobs beside them, as Hugging Face's cache has them."""
    blobs, revision = tmp_path / "cache/blobs", tmp_path / "cache/snapshots/0123abc"
    (revision / "slide_1").mkdir(parents=True)
    for number, name in enumerate(("a.png", "slide_1/b.png")):
        draw(blobs / f"{number:064x}")
        (revision / name).symlink_to(f"{'../' * (2 + name.count('/'))}blobs/{number:064x}")
    return revision


def test_links_out_of_the_folder_are_refused_as_links_and_followed_when_asked(
    snapshot: Path, invoke: Invoke, out: Path
) -> None:
    refused = invoke(tiles=snapshot)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"error: no tiles in {snapshot}: 2 other files (2 links that lead elsewhere); --follow-links follows links\n"
    )
    done = invoke("--follow-links", tiles=snapshot)
    assert done.exit_code == 0, done.stderr
    assert paths_in(out) == ["a.png", "slide_1/b.png"]
    assert {row["status"] for row in read_table(out)} == {"ok"}
    assert "ignored" not in done.stderr


def test_a_dry_run_and_a_bench_follow_links_too(snapshot: Path, invoke: Invoke, bundle: Bundle) -> None:
    assert "2 tiles, and as many rows\n" in invoke("--dry-run", "--follow-links", tiles=snapshot).output
    quick = ["--sweep", "2", "-b", "2", "--round-seconds", "0", "--max-rounds", "5", "--stable-within", "0.99"]
    done = CliRunner().invoke(bench, [str(snapshot), "--model", str(bundle.root), "--json", *quick])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["tiles"] == 2


def test_a_retry_reads_the_links_that_its_table_was_made_of(snapshot: Path, invoke: Invoke, out: Path) -> None:
    blob = snapshot.parents[1] / "blobs" / f"{1:064x}"
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-40])
    assert invoke("--follow-links", tiles=snapshot).exit_code == 3
    blob.write_bytes(whole)
    assert invoke("--retry-failures", tiles=snapshot).exit_code == 0
    assert [row["status"] for row in read_table(out)] == ["ok", "ok"]


def test_a_staged_folder_of_links_to_files_and_folders(tmp_path: Path, invoke: Invoke, out: Path) -> None:
    work, staged = tmp_path / "work", tmp_path / "staged"
    draw(work / "ab/x.png", work / "cd/slide_2/y.png", work / "cd/slide_2/deep/z.png")
    staged.mkdir()
    draw(staged / "own.png")
    (staged / "x.png").symlink_to(work / "ab/x.png")
    (staged / "slide_2").symlink_to(work / "cd/slide_2", target_is_directory=True)
    (work / "cd/slide_2/back").symlink_to(staged, target_is_directory=True)
    done = invoke(tiles=staged)
    assert done.exit_code == 0, done.stderr
    assert paths_in(out) == ["own.png"]
    assert f"table: {out}   (2 other files ignored: 2 links that lead elsewhere)\n" in done.stderr
    done = invoke("--follow-links", "--overwrite", tiles=staged)
    assert done.exit_code == 0, done.stderr
    assert paths_in(out) == ["own.png", "slide_2/deep/z.png", "slide_2/y.png", "x.png"]
    assert "(1 other file ignored: 1 link in a loop)\n" in done.stderr


def test_a_share_with_thumbnails_says_what_it_passed_over(
    tmp_path: Path, invoke: Invoke, out: Path, validate: Validate
) -> None:
    share = draw_folder(tmp_path / "share", 4)
    draw(share / "@eaDir/tile.png/SYNOPHOTO_THUMB_M.jpg", share / "slide_a/@eaDir/t.jpg", share / "#recycle/old.png")
    draw(share / ".hidden.png", share / "slide_b/notes.txt", share / "whole.svs")
    log = tmp_path / "log.txt"
    done = invoke("--log-file", str(log), tiles=share)
    assert done.exit_code == 0, done.stderr
    assert len(read_table(out)) == 4
    counted = "(6 other files ignored: 3 system folders, 1 hidden, 1 with another suffix, 1 whole slide)"
    assert f"table: {out}   {counted}\n" in done.stderr
    logged = log.read_text()
    assert re.search(r" DEBUG cervix_engine\.cli\.shared\.logs: cervix [\d.]+ on .+: .+", logged.splitlines()[0])
    assert re.fullmatch(r".* ended after [\d.]+ s", logged.splitlines()[-1])
    for line in ("hidden: '.hidden.png'", "system_folder: 'slide_a/@eaDir'", "whole_slide: 'whole.svs'"):
        assert f"ignored, {line}\n" in logged
    document = json.loads(out.with_name("preds.csv.run.json").read_text())
    validate("run", document)
    assert document["ignored"] == 6
    assert document["ignored_by"] == {"hidden": 1, "suffix": 1, "system_folder": 3, "whole_slide": 1}


@pytest.mark.parametrize("name", ["slide.svs", "slide.NDPI"])
def test_a_slide_that_is_named_and_is_none_is_one_failed_row(
    tmp_path: Path, invoke: Invoke, out: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert invoke(tiles=tmp_path / name).exit_code == 3
    (row,) = read_table(out)
    assert (row["path"], row["status"], row["error"].partition(":")[0]) == (f"{name}/slide", "failed", "not_a_slide")


@pytest.fixture
def stopped(tmp_path: Path, bundle: Bundle, out: Path) -> Path:
    """The folder of a run that was interrupted after its first batch of 8."""
    folder = draw_folder(tmp_path / "growing", 24)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(BatchConfig(folder, out, bundle.root, batch_size=8), progress=interrupt)
    return folder


def test_an_unchanged_folder_is_not_spoken_of(stopped: Path, invoke: Invoke, out: Path) -> None:
    done = invoke(tiles=stopped)
    assert done.exit_code == 0, done.stderr
    assert "since the folder was listed" not in done.stderr
    assert json.loads(out.with_name("preds.csv.run.json").read_text())["folder_changes"] == {"added": 0, "removed": 0}


def test_a_folder_that_grew_gets_its_listed_rows_and_exit_3(
    stopped: Path, invoke: Invoke, out: Path, validate: Validate
) -> None:
    listed = sorted(str(path.relative_to(stopped)) for path in stopped.rglob("*.*"))
    draw(stopped / "slide_a/new.png", stopped / "0.png")
    done = invoke(tiles=stopped)
    assert done.exit_code == 3
    assert paths_in(out) == listed
    assert done.stderr.endswith(
        "warning: since the folder was listed, 2 tiles were added, which this table does not have, and 0 were removed\n"
    )
    document = json.loads(out.with_name("preds.csv.run.json").read_text())
    validate("run", document)
    assert document["folder_changes"] == {"added": 2, "removed": 0}
    assert RunRecord.load(out.with_name("preds.csv.run.json")).to_json() == document


def test_a_folder_that_shrank_has_rows_of_what_was_listed_and_exit_3(stopped: Path, invoke: Invoke, out: Path) -> None:
    done_already, missing = "slide_a/tile_00001.jpg", "tile_00020.JPG"
    for name in (done_already, missing):
        (stopped / name).unlink()
    done = invoke(tiles=stopped)
    assert done.exit_code == 3
    assert "0 tiles were added, which this table does not have, and 2 were removed\n" in done.stderr
    rows = {row["path"]: row["status"] for row in read_table(out)}
    assert len(rows) == 24
    assert [name for name, status in rows.items() if status == "failed"] == [missing]


def test_a_run_that_followed_links_goes_on_following_them(
    snapshot: Path, invoke: Invoke, bundle: Bundle, out: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_folder(BatchConfig(snapshot, out, bundle.root, batch_size=1, follow_links=True), progress=interrupt)
    assert invoke(tiles=snapshot).exit_code == 0
    assert paths_in(out) == ["a.png", "slide_1/b.png"]


def test_a_run_that_followed_none_does_not_begin_to(stopped: Path, invoke: Invoke, out: Path) -> None:
    refused = invoke("--follow-links", tiles=stopped)
    assert refused.exit_code == 1
    assert "with follow_links False, this one has True: run it as before" in refused.stderr
    shutil.rmtree(stopped)
