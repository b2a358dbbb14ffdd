"""A training that is killed, SIGKILL and all, in each of its stages, ends as an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HEAD_EPOCHS, TUNED_EPOCHS = 5, 3
# Small enough that fine-tuning goes through all of its epochs, whatever it brings.
QUICK = ["--backbone", "cnn", "--input-size", "32", "-b", "16", "--recipe", "paper", "--patience", "50"]
EPOCHS = ["--epochs", str(HEAD_EPOCHS), "--fine-tune-epochs", str(TUNED_EPOCHS)]


def training(drawn: Path, folder: Path) -> list[str]:
    paths = [str(drawn), "-o", str(folder / "bundle"), "--cache", str(folder / "cache")]
    return [sys.executable, "-u", "-m", "cervix_train.cli.train", *paths, *QUICK, *EPOCHS]


def killed_after(command: list[str], line: str) -> None:
    """Run until `line` begins a line of its log, and kill it."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for said in process.stderr:
            if said.startswith(line):
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stderr.read()
    assert process.returncode == -signal.SIGKILL, f"ended before {line!r}"


@pytest.mark.slow
def test_killed_in_either_stage_it_ends_as_if_undisturbed(drawn: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(training(drawn, undisturbed), check=True, capture_output=True, timeout=300)
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    head, tuned = chance.randint(1, HEAD_EPOCHS - 1), chance.randint(1, TUNED_EPOCHS - 1)
    where = f"seed {seed}: head epoch {head}, fine-tuning epoch {tuned}"
    killed_after(training(drawn, killed), f"epoch {head} of {HEAD_EPOCHS}")
    assert not (killed / "bundle").exists(), where
    killed_after([*training(drawn, killed), "--resume"], f"epoch {tuned} of {TUNED_EPOCHS}")
    done = subprocess.run(
        [*training(drawn, killed), "--resume"], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{where}\n{done.stderr}"
    for name in ("metrics.json", "history.csv", "history_fine_tune.csv", "calibration.json"):
        expected = (undisturbed / "bundle" / "training" / name).read_bytes()
        assert (killed / "bundle" / "training" / name).read_bytes() == expected, f"{name}, {where}"
