"""What native code prints on descriptor 2 goes into the log, and Python's own lines stay on standard error."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cli.shared.logs import debug_log, native_lines_logged
from engine.run.support import PATIENCE_S
from engine.tiles.encoded_tiles import PNG_RGB, draw, jpeg, jpeg_with_segment, png


def noisy_tiles() -> dict[str, bytes]:
    """Tiles that OpenCV's codecs have something to say about."""
    whole = png(draw(), PNG_RGB)
    at = whole.index(b"IDAT") + 40
    photo = jpeg(draw())
    return {
        "good.png": whole,
        "checksum.png": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        "more than its scan.jpg": photo[:-2] + bytes(9) + photo[-2:],
        "unknown version.jpg": jpeg_with_segment(photo, 0xE0, b"JFIF\0\7\7" + bytes(7)),
    }


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_quiet_prints_nothing_of_native_code(tmp_path: Path, bundle: Bundle, dry: list[str]) -> None:
    (tmp_path / "tiles").mkdir()
    for name, data in noisy_tiles().items():
        (tmp_path / "tiles" / name).write_bytes(data)
    script = Path(sys.executable).with_name("cervix-batch")
    command: list[str | Path] = [
        script,
        tmp_path / "tiles",
        "--out",
        tmp_path / "preds.csv",
        "--model",
        bundle.root,
        "--quiet",
    ]
    command += ["--log-file", tmp_path / "log.txt", "--max-failures", "100%", *dry]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stderr == ""
    if not dry:
        assert done.returncode == 3
        assert "libpng error" in (tmp_path / "log.txt").read_text()


def test_native_lines_go_into_the_log_and_python_s_stay(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from cervix_engine.cli.shared.logs import debug_log, native_lines_logged
with debug_log(Path(sys.argv[1])), native_lines_logged():
    os.write(2, b"from native code\\n" + b"x" * 300_000)
    print("from Python", file=sys.stderr)
    os.write(sys.stderr.fileno(), b"from a signal handler\\n")
os.write(2, b"afterwards\\n")
print("and Python", file=sys.stderr)
"""
    log = tmp_path / "log.txt"
    done = subprocess.run([sys.executable, "-c", code, log], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stderr == "from Python\nfrom a signal handler\nafterwards\nand Python\n"
    assert "native: from native code" in log.read_text()


def test_an_error_leaves_descriptor_2_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = open_descriptors()
    with suppress(ValueError), debug_log(tmp_path / "log.txt"), native_lines_logged():
        os.write(2, b"inside\n")
        raise ValueError
    os.write(2, b"outside\n")
    assert capfd.readouterr().err == "outside\n"
    assert "native: inside" in (tmp_path / "log.txt").read_text()
    assert open_descriptors() == before


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_process_without_descriptor_2_runs_as_ever() -> None:
    code = "from cervix_engine.cli.shared.logs import native_lines_logged\nwith native_lines_logged(): print('done')"
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert done.stdout == "done\n"
