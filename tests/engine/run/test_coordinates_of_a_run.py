"""Where names say where a tile lies, slide and place stand in its row; they are part of what a run is."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from engine.run.support import drawn_tile, read_table

GEOMETRY = ("slide_id", "minx", "miny", "width", "height")
NAMES = ["a_x10_y20.png", "b [x=3,y=4,w=64,h=48].png", "plain.png", "12_34.png", "bad_x5_y6.png"]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (root := tmp_path / "study").mkdir()
    for seed, name in enumerate(NAMES):
        (root / name).write_bytes(drawn_tile(seed) if not name.startswith("bad") else b"no tile")
    return root


def _run(study: Path, bundle: Bundle, *options: str) -> Result:
    out = study.parent / "preds.csv"
    return CliRunner().invoke(main, [str(study), "--out", str(out), "--model", str(bundle.root), "-b", "2", *options])


def _places(study: Path) -> dict[str, tuple[str, ...]]:
    return {row["path"]: tuple(row[name] for name in GEOMETRY) for row in read_table(study.parent / "preds.csv")}


def test_only_what_names_spell_out_is_taken(study: Path, bundle: Bundle) -> None:
    assert _run(study, bundle).exit_code == 3
    places = _places(study)
    assert places[NAMES[0]][:3] == ("a", "10", "20")
    assert places[NAMES[1]] == ("b", "3", "4", "64", "48")
    for name in NAMES[2:4]:
        assert places[name][:3] == ("study", "", ""), name
        assert int(places[name][3]) > 0
    assert places[NAMES[4]] == ("bad", "", "", "", "")


def test_a_pattern_places_other_names(study: Path, bundle: Bundle) -> None:
    assert _run(study, bundle, "--coords", "{x}_{y}").exit_code == 3
    places = _places(study)
    assert places["12_34.png"][:3] == ("study", "12", "34")
    assert places[NAMES[0]][:3] == ("study", "", "")


def test_a_retry_takes_the_tables_own_pattern_and_refuses_another(study: Path, bundle: Bundle) -> None:
    _run(study, bundle, "--coords", "bad_x{x}_y{y}")
    (study / NAMES[4]).write_bytes(drawn_tile(9))
    refused = _run(study, bundle, "--retry-failures", "--coords", "{x}_{y}")
    assert refused.exit_code == 1
    assert "coords" in refused.stderr
    assert _run(study, bundle, "--retry-failures").exit_code == 0
    assert _places(study)[NAMES[4]][1:3] == ("5", "6")


def test_a_wrong_pattern_is_refused_before_any_work(study: Path, bundle: Bundle) -> None:
    done = _run(study, bundle, "--coords", "{x}")
    assert done.exit_code == 2
    assert "expected {x} and {y}" in done.stderr
