"""`--update` and `--retry-failures` where a file says slides and places, and has changed since the table was made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import OutputError, ResumeMismatchError, UsageError
from cervix_engine.run.assembly.beside import record_of
from cervix_engine.run.batch import BatchConfig, RunSetup, predict_folder
from cervix_engine.run.record import RunRecord, TableChanges
from cervix_engine.run.session import Chosen, SessionRequest
from cervix_engine.run.shards import ShardSize
from cervix_engine.run.verify import verify_table
from engine.run.support import Killed, choose_fake, drawn_tile, finished_files, make_fake_bundle, run_setup

pytestmark = pytest.mark.timeout(120)

NAMES = [f"t{index}.png" for index in range(7)]
BAD = "t5.png"
LIST = "".join(f"{name},S{index // 3},{32 * index},0\n" for index, name in enumerate(NAMES[:6]))
HEADER = "path,slide_id,minx,miny\n"
GROWN = f"{HEADER}{LIST}t6.png,S9,320,64\n"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle")


@dataclass(frozen=True, slots=True)
class Study:
    """Tiles, a file that says their slides and places, and a run that reads it as `options` say.

    Attributes:
        file: the list.
        config: of the run.
    """

    file: Path
    config: BatchConfig

    @property
    def tiles(self) -> Path:
        """The folder of the tiles."""
        return self.file.parent if self.config.tiles == self.file else Path(self.config.tiles)

    def write(self, text: str) -> None:
        self.file.write_text(text)

    def run(self, **changes: Any) -> RunRecord:
        return predict_folder(replace(self.config, **changes), setup=setup())

    def assert_as_fresh(self) -> None:
        out = self.config.out.with_name("fresh") / self.config.out.name
        out.parent.mkdir(exist_ok=True)
        self.run(out=out, overwrite=True, update=False)
        for name in finished_files(out.name) - {f"{out.name}.run.json"}:
            assert self.config.out.with_name(name).read_bytes() == out.with_name(name).read_bytes(), name
        assert verify_table(self.config.out) == []


def setup(**options: Any) -> RunSetup:
    return run_setup(choose=choose_fake, shard=ShardSize(1), **options)


@pytest.fixture
def study(request: pytest.FixtureRequest, fake: Bundle, tmp_path: Path) -> Study:
    """A finished table of six tiles, the last of which cannot be read."""
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    for index, name in enumerate(NAMES[:6]):
        (tiles / name).write_bytes(b"" if name == BAD else drawn_tile(index))
    option = getattr(request, "param", "list")
    file = tiles / "list.csv" if option == "list" else tmp_path / "said.csv"
    options: dict[str, Any] = {} if option == "list" else {option: str(file)}
    source = file if option == "list" else tiles
    (tmp_path / "out").mkdir()
    config = BatchConfig(source, tmp_path / "out" / "preds.csv", fake.root, batch_size=2, workers=1, **options)
    made = Study(file, config)
    made.write(HEADER + LIST)
    made.run()
    return made


def grow(study: Study) -> None:
    (study.tiles / NAMES[6]).write_bytes(drawn_tile(6))
    study.write(GROWN)


ANY_FILE = pytest.mark.parametrize("study", ["list", "slide", "coords"], indirect=True)


@ANY_FILE
def test_a_list_that_grew(study: Study) -> None:
    kept = study.config.out.read_bytes()
    grow(study)
    assert study.run(update=True, slide=None, coords=None).table_changes == TableChanges(added=1, changed=0, removed=0)
    assert study.config.out.read_bytes().startswith(kept)
    assert b"\nt6.png,S9,320,64," in study.config.out.read_bytes()
    assert study.run(update=True).table_changes == TableChanges(1, 0, 0)  # that of the table, where nothing is new
    study.assert_as_fresh()


@ANY_FILE
def test_a_list_that_says_otherwise(study: Study) -> None:
    """One tile lies elsewhere, two are of another slide, one of which failed; one is gone."""
    said = HEADER + LIST
    said = (
        said.replace("t0.png,S0,0,0", "t0.png,S0,8,0")
        .replace("t3.png,S1", "t3.png,S7")
        .replace(BAD + ",S1", BAD + ",S8")
    )
    study.write(said.replace("t4.png,S1,128,0\n", ""))
    (study.tiles / "t4.png").unlink()
    assert study.run(update=True).table_changes == TableChanges(added=0, changed=3, removed=1)
    study.assert_as_fresh()


def test_a_list_that_only_says_it_otherwise_keeps_every_row(study: Study) -> None:
    def refuse(_: SessionRequest) -> Chosen:
        raise AssertionError("a model is opened")

    before = record_of(study.config.out)
    study.write(HEADER + "".join(reversed(LIST.splitlines(keepends=True))))
    assert predict_folder(replace(study.config, update=True), setup=run_setup(choose=refuse)) == before


def test_a_list_that_only_lost_tiles(study: Study) -> None:
    study.write(HEADER + LIST.replace("t4.png,S1,128,0\n", ""))
    (study.tiles / "t4.png").unlink()

    def killed() -> RunRecord:
        return predict_folder(replace(study.config, update=True), setup=setup(stop_at="commit", error=Killed()))

    with pytest.raises(Killed):
        killed()
    assert study.run(update=True).table_changes == TableChanges(added=0, changed=0, removed=1)
    study.assert_as_fresh()


def test_an_interrupted_update_whose_list_changed_is_refused_and_can_begin_anew(study: Study) -> None:
    grow(study)
    with pytest.raises(Killed):
        predict_folder(replace(study.config, update=True), setup=setup(stop_at="assemble", error=Killed()))
    study.write(GROWN.replace("t0.png,S0", "t0.png,S5"))
    with pytest.raises((UsageError, ResumeMismatchError), match="--no-resume"):
        study.run(update=True)
    assert study.run(update=True, resume=False).table_changes == TableChanges(1, 1, 0)
    study.assert_as_fresh()


def test_a_retry_keeps_rows_only_where_they_are_still_said_so(study: Study) -> None:
    (study.tiles / BAD).write_bytes(drawn_tile(5))
    study.write(HEADER + LIST.replace("t0.png,S0", "t0.png,S5"))
    with pytest.raises(OutputError, match="bring it up to date with --update, then retry"):
        study.run(retry_failures=True)
    study.write(HEADER + "".join(reversed(LIST.splitlines(keepends=True))))
    assert study.run(retry_failures=True).failed == 0
    study.assert_as_fresh()


def test_a_list_that_came_to_say_slides(fake: Bundle, tmp_path: Path) -> None:
    for index, name in enumerate(NAMES[:2]):
        (tmp_path / name).write_bytes(drawn_tile(index))
    (tmp_path / "out").mkdir()
    config = BatchConfig(tmp_path / "l.csv", tmp_path / "out" / "preds.csv", fake.root, batch_size=2, workers=1)
    study = Study(tmp_path / "l.csv", config)
    study.write("path\nt0.png\nt1.png\n")
    study.run()
    study.write(HEADER + LIST[: LIST.index("t2")])
    assert study.run(update=True).table_changes == TableChanges(0, 2, 0)
    study.assert_as_fresh()


def test_a_changed_list_without_update_is_another_table(study: Study) -> None:
    grow(study)
    with pytest.raises(OutputError, match="--overwrite"):
        study.run(keep_finished=True)
