"""The same tiles from every kind of source give the same table, and all that is done with it works alike."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.cli.report import main as report
from cervix_engine.cli.verify import main as verify
from cervix_engine.model import Model
from cervix_engine.run.batch import BatchConfig, predict_folder
from cervix_engine.run.record import RunRecord
from cervix_engine.tiles.sources import tile_list
from engine.run.support import choose_fake, draw_folder, read_table, run_setup
from engine.tiles.sources.packed import listed, members_of, tar, zipped

TILES = 41
FAKE = run_setup(choose=choose_fake)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = draw_folder(tmp_path_factory.mktemp("sources") / "study", TILES)
    (root / "slide_a" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


@pytest.fixture(scope="module")
def places(study: Path) -> dict[str, Path]:
    """The same tiles, by kind of source."""
    members = members_of(study)
    placed = {
        "folder": study,
        "list": listed(study / "list.txt", sorted(members)),
        "csv": listed(study / "list.csv", ["path", *(f'"{name}"' for name in members)]),
        "tar": tar(study.parent / "study.tar", members.items()),
        "zip": zipped(study.parent / "study.zip", members.items()),
    }
    shards = study.parent / "shards"
    shards.mkdir()
    for number in range(3):
        some = list(members.items())[number::3]
        beside = [(f"{name.rpartition('.')[0]}.cls", b"1") for name, _ in some]
        tar(shards / f"study-{number}.tar", [*some, *beside])
    return {**placed, "webdataset": shards}


def run(tiles: str | Path, out: Path, bundle: Bundle, *options: str, stdin: bytes | None = None) -> int:
    arguments = [str(tiles), "--out", str(out), "--model", str(bundle.root), "-b", "4", "-j", "2", *options]
    return CliRunner().invoke(main, arguments, input=stdin, obj=FAKE).exit_code


@pytest.fixture(scope="module")
def expected(places: dict[str, Path], fake_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("expected") / "preds.csv"
    assert run(places["folder"], out, fake_bundle, "--hash") == 3, "one tile is cut"
    return out


@pytest.mark.parametrize("kind", ["list", "csv", "tar", "zip"])
def test_the_table_is_that_of_the_folder(
    kind: str, places: dict[str, Path], expected: Path, fake_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "preds.csv"
    assert run(places[kind], out, fake_bundle, "--hash") == 3
    assert out.read_bytes() == expected.read_bytes()
    checked = CliRunner().invoke(verify, [str(out), "--tiles", str(places[kind])])
    assert (checked.exit_code, checked.stderr) == (0, f"{out}: as the run wrote it\n")


def test_shards_give_the_same_rows_under_their_own_names(
    places: dict[str, Path], expected: Path, fake_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "preds.csv"
    assert run(places["webdataset"], out, fake_bundle, "--slide", "*/{slide}/**") == 3
    assert RunRecord.load(out.with_name("preds.csv.run.json")).ignored_by == {"suffix": TILES + 1}
    dropped = {"path", "slide_id", "sha256"}
    rows = {row["path"].partition("/")[2]: row for row in read_table(out)}
    for row in read_table(expected):
        mine = rows.pop(row["path"])
        assert {k: v for k, v in mine.items() if k not in dropped} == {k: v for k, v in row.items() if k not in dropped}
    assert rows == {}


def test_a_list_on_standard_input(
    places: dict[str, Path], expected: Path, fake_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places["folder"])
    tile_list.standard_input.cache_clear()
    out = tmp_path / "preds.csv"
    assert run("-", out, fake_bundle, "--hash", stdin=places["list"].read_bytes()) == 3
    tile_list.standard_input.cache_clear()
    assert out.read_bytes() == expected.read_bytes()


def test_a_list_says_slides_and_places(study: Path, fake_bundle: Bundle, tmp_path: Path) -> None:
    names = sorted(name for name in members_of(study) if name.startswith("tile_"))[:3]
    lines = [f"{name},S-{number},{number * 10},7" for number, name in enumerate(names)]
    tiles = listed(study / "where.csv", ["path,slide_id,minx,miny", *lines])
    out = tmp_path / "preds.csv"
    assert run(tiles, out, fake_bundle) == 0
    rows = [(row["path"], row["slide_id"], row["minx"], row["miny"]) for row in read_table(out)]
    assert rows == [(name, f"S-{number}", str(number * 10), "7") for number, name in enumerate(names)]
    assert run(tiles, out, fake_bundle, "--overwrite", "--slide", "{slide}_*") == 0
    assert {row["slide_id"] for row in read_table(out)} == {"tile"}


@pytest.mark.parametrize("kind", ["list", "tar", "zip"])
def test_an_interrupted_run_goes_on(
    kind: str, places: dict[str, Path], expected: Path, fake_bundle: Bundle, tmp_path: Path
) -> None:
    config = BatchConfig(places[kind], tmp_path / "preds.csv", fake_bundle.root, batch_size=4, hash_tiles=True)

    def stop(done: int, found: int) -> None:
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_folder(config, progress=stop, setup=FAKE)
    record = predict_folder(config, setup=FAKE)
    assert record.resumed > 0
    assert record.folder_changes is not None
    assert not record.folder_changes
    assert config.out.read_bytes() == expected.read_bytes()


def test_a_run_on_an_archive_that_changed_stops_and_begins_anew_when_told(
    study: Path, expected: Path, fake_bundle: Bundle, tmp_path: Path
) -> None:
    archive = tar(tmp_path / "study.tar", members_of(study).items())
    config = BatchConfig(archive, tmp_path / "preds.csv", fake_bundle.root, batch_size=4)

    def stop(done: int, found: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_folder(config, progress=stop, setup=FAKE)
    os.utime(archive, ns=(1, 1))
    done = CliRunner().invoke(main, [str(archive), "-o", str(config.out), "--model", str(fake_bundle.root)], obj=FAKE)
    assert done.exit_code == 1
    assert "has changed since it was listed: begin anew with --no-resume" in done.stderr
    assert run(archive, config.out, fake_bundle, "--hash", "--no-resume") == 3
    assert config.out.read_bytes() == expected.read_bytes()


def test_failed_members_are_tried_again_and_pictures_are_shown(
    study: Path, fake_bundle: Bundle, tmp_path: Path
) -> None:
    copy = shutil.copytree(study, tmp_path / "study")
    archive, out, page = tmp_path / "study.zip", tmp_path / "preds.csv", tmp_path / "report.html"
    zipped(archive, members_of(copy).items())
    assert run(archive, out, fake_bundle) == 3
    (copy / "slide_a" / "cut.png").write_bytes((copy / "tile_00004.png").read_bytes())
    zipped(archive, members_of(copy).items())
    assert run(archive, out, fake_bundle, "--retry-failures") == 0
    assert {row["status"] for row in read_table(out)} == {"ok"}
    done = CliRunner().invoke(report, [str(out), "-o", str(page), "--tiles", str(archive), "--top", "5"])
    assert done.exit_code == 0, done.stderr
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 10


def test_python_takes_what_the_command_takes(
    places: dict[str, Path], expected: Path, bundle: Bundle, tmp_path: Path
) -> None:
    with Model.open(bundle.root, precision="fp32", batch_size=4) as model:
        tables = [tmp_path / f"{kind}.csv" for kind in ("folder", "tar")]
        for table in tables:
            model.predict_folder(places[table.stem], out=table)
    assert tables[0].read_bytes() == tables[1].read_bytes()


@pytest.mark.parametrize("kind", ["list", "tar"])
def test_a_table_never_takes_the_place_of_its_own_tiles(
    kind: str, study: Path, tmp_path: Path, fake_bundle: Bundle
) -> None:
    tiles = tmp_path / ("preds.csv" if kind == "list" else "preds.tar")
    if kind == "list":
        listed(tiles, ["path", *(str(study / name) for name in members_of(study))])
    else:
        tar(tiles, members_of(study).items())
    before = tiles.read_bytes()
    done = CliRunner().invoke(
        main, [str(tiles), "-o", str(tiles), "--overwrite", "--model", str(fake_bundle.root)], obj=FAKE
    )
    assert done.exit_code == 2
    assert tiles.read_bytes() == before
    assert io.StringIO(done.stderr).readline().startswith("error: ")
