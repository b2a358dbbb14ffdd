"""Memory does not grow with the number of tiles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cervix_engine.bundle.bundle import Bundle
from engine.run.support import PATIENCE_S, drawn_tile, environment

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

# The peak of this program's own memory: `ru_maxrss` would count the test session's, from which it was started.
RUN = """
import re, sys
from pathlib import Path
from cervix_engine.run.batch import BatchConfig, predict_folder
from engine.run.support import choose_fake, run_setup
tiles, out, model = map(Path, sys.argv[1:])
config = BatchConfig(tiles=tiles, out=out, model=model, workers=2)
found = predict_folder(config, setup=run_setup(choose=choose_fake)).found
print(found, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def linked(root: Path, count: int) -> Path:
    """`count` names for a few tiles, 1,000 a folder."""
    root.mkdir()
    for kind in range(4):
        (root / f"{kind}.png").write_bytes(drawn_tile(kind))
    for index in range(count - 4):
        if index % 1000 == 0:
            (root / f"slide {index // 1000}").mkdir()
        (root / f"slide {index // 1000}" / f"tile at {index:08d}.png").hardlink_to(root / f"{index % 4}.png")
    return root


def peak_megabytes(tiles: Path, bundle: Bundle) -> float:
    command = [sys.executable, "-c", RUN, str(tiles), str(tiles.with_suffix(".csv")), str(bundle.root)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    found, kilobytes = done.stdout.split()
    with tiles.with_suffix(".csv").open("rb") as table:
        assert sum(1 for _ in table) == int(found) + 1
    return int(kilobytes) / 1024


def test_memory_is_the_same_for_forty_times_the_tiles(tmp_path: Path, fake_bundle: Bundle) -> None:
    few = peak_megabytes(linked(tmp_path / "few", 500), fake_bundle)
    many = peak_megabytes(linked(tmp_path / "many", 20_000), fake_bundle)
    assert many - few < 20, f"{few:.0f} MB for 500 tiles, {many:.0f} MB for 20,000"
