"""`cervix-batch --quality`: planted faults are flagged in their rows, and a run with many says so."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.batch import main
from cervix_engine.run.record import RunRecord
from engine.run.support import encoded, read_table

GOOD = 12


def _cell(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A cell with sharp edges, a nucleus and grain, on a pale ground; BGR."""
    random = np.random.default_rng(seed)
    pixels = np.full((90, 100, 3), (220, 215, 225), np.uint8)
    cv2.circle(pixels, (50, 45), int(random.integers(28, 36)), (170, 120, 190), -1)
    cv2.circle(pixels, (52, 43), int(random.integers(8, 12)), (110, 50, 90), -1)
    return np.asarray(np.clip(pixels + random.normal(0, 6, pixels.shape), 0, 255), np.uint8)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Sharp cells, and one tile of each fault; one file is no tile."""
    (root := tmp_path / "study").mkdir()
    for seed in range(GOOD):
        (root / f"good_{seed:02d}.png").write_bytes(encoded(".png", _cell(seed)))
    faults = {
        "blank": np.full((90, 100, 3), 200, np.uint8),
        "blurred": cv2.GaussianBlur(_cell(1), (0, 0), 3),
        "blue_shift": np.clip(_cell(2).astype(np.int16) + np.array([100, 0, -100]), 0, 255).astype(np.uint8),
    }
    for name, pixels in faults.items():
        (root / f"{name}.png").write_bytes(encoded(".png", np.asarray(pixels)))
    (root / "bad.png").write_bytes(b"no tile")
    return root


def _run(study: Path, bundle: Bundle, *options: str) -> Result:
    out = study.parent / "preds.csv"
    return CliRunner().invoke(main, [str(study), "--out", str(out), "--model", str(bundle.root), "-b", "4", *options])


def test_faults_are_flagged_and_good_tiles_are_not(study: Path, bundle: Bundle) -> None:
    done = _run(study, bundle, "--quality", "--hash")
    assert done.exit_code == 3, done.output
    rows = read_table(study.parent / "preds.csv")
    assert list(rows[0])[-2:] == ["quality", "sha256"]
    assert {row["path"].removesuffix(".png"): row["quality"] for row in rows if row["quality"]} == {
        name: name for name in ("blank", "blurred", "blue_shift")
    }
    assert RunRecord.load(study.parent / "preds.csv.run.json").flagged == 3
    assert "warning" not in done.stderr, "3 of 15 are not more than a fifth"


def test_a_run_with_many_flagged_tiles_says_so(study: Path, bundle: Bundle) -> None:
    (study / "good_00.png").write_bytes((study / "blank.png").read_bytes())
    done = _run(study, bundle, "--quality")
    assert "warning: 4 of 15 predicted tiles (27%) look unlike what the model was trained on" in done.stderr


def test_without_the_option_there_is_no_column(study: Path, bundle: Bundle) -> None:
    _run(study, bundle)
    assert "quality" not in read_table(study.parent / "preds.csv")[0]


def test_a_retry_keeps_the_count_of_the_table_that_it_mends(study: Path, bundle: Bundle) -> None:
    _run(study, bundle, "--quality")
    (study / "bad.png").write_bytes((study / "blank.png").read_bytes())
    assert _run(study, bundle, "--retry-failures").exit_code == 0
    assert RunRecord.load(study.parent / "preds.csv.run.json").flagged == 4
