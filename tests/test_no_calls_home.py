"""No command looks up a host, and none leaves a file in the user's home folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from cervix_train.synthetic import write_drawn
from preload import preloaded

SCRIPTS = Path(sys.executable).parent
EXAMPLES = Path(__file__).parents[1] / "examples"
COMMANDS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "scripts"
]

TRAIN = "--backbone cnn --input-size 32 --epochs 1 -b 16"
BENCH = "--count 32 -b 8 --sweep 8 --max-rounds 5 --round-seconds 0 --stable-within 0.99"


@dataclass(frozen=True)
class Watched:
    """A folder to work in, an empty home, and a log of what a process asks the network for."""

    folder: Path
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        return Path(self.environment["HOME"])

    def run(self, *command: str | Path) -> None:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"

    @property
    def asked(self) -> str:
        log = Path(self.environment["NETLOG"])
        return log.read_text() if log.exists() else ""

    @property
    def left_at_home(self) -> list[str]:
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*"))


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Without the variables that would lead elsewhere what belongs into a home folder."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    (tmp_path / "home").mkdir()
    where = {"HOME": str(tmp_path / "home"), "NETLOG": str(tmp_path / "net.log")}
    return Watched(tmp_path, {**kept, **where, **preloaded("net", tmp_path)})


def test_the_log_shows_a_look_up_and_a_connection(watched: Watched) -> None:
    watched.run(
        sys.executable,
        "-c",
        "from socket import *; getaddrinfo('localhost', 9); socket(type=SOCK_DGRAM).connect(('127.0.0.1', 9))",
    )
    assert watched.asked == "getaddrinfo localhost\nconnect 127.0.0.1\n"


@pytest.mark.parametrize("library", ["onnxruntime", "onnxruntime_ep_openvino", "openvino", "openvino.tools.ovc"])
def test_a_python_user_s_runtimes_are_silent_once_the_engine_is_imported(watched: Watched, library: str) -> None:
    pytest.importorskip(library, reason="needs the runtimes: pip install '.[cpu]'")
    watched.run(sys.executable, "-c", f"import cervix_engine, {library}")
    assert (watched.asked, watched.left_at_home) == ("", [])


def test_openvino_needs_no_home(watched: Watched) -> None:
    pytest.importorskip("openvino", reason="needs the runtimes: pip install '.[cpu]'")
    environment = {**watched.environment, **preloaded("shim", watched.folder), "SHIM_NO_USER": "1"}
    del environment["HOME"]
    code = "import cervix_engine, openvino, pathlib; pathlib.Path.home()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr.splitlines()[-1] == "RuntimeError: Could not determine home directory."
    assert "openvino" not in done.stderr, "only the last of its statements fails"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_command_looks_up_a_host_or_leaves_a_file_at_home(watched: Watched) -> None:
    write_drawn(watched.folder / "cells", tiles=60, seed=1)
    for number, tile in enumerate(sorted((watched.folder / "cells").rglob("*.png"))[:12]):
        (watched.folder / "slides").mkdir(exist_ok=True)
        tile.rename(watched.folder / f"slides/s_x{number * 100}_y0.png")
    watched.run(sys.executable, EXAMPLES / "draw_onnx_model.py", "brought", "--tiles", "12")
    chain = [
        f"cervix-train cells -o models/cervix --folds 3 {TRAIN}",
        "cervix-compare-folds models/cervix models/cervix",
        "cervix-evaluate models/cervix cells",
        "cervix-audit cells --price --backbone cnn --weights none --input-size 32 --epochs 1 -b 16 --repeats 1",
        "cervix-export --fp16 --tiles 8",
        "cervix-parity --history nights.jsonl --drift-plot drift.png",
        "cervix-import brought/model.onnx --contract brought/contract.json --golden brought/tiles -o brought/bundle",
        "cervix-card",
        "cervix-doctor",
        "cervix doctor",
        *(
            f"cervix-batch slides -o {backend}.csv --backend {backend} --summary {backend}-slides.csv "
            f"--geojson {backend}-objects --report {backend}.html"
            for backend in ("onnxruntime-cpu", "openvino")
        ),
        "cervix-batch slides -o table.parquet -b auto -j auto",
        "cervix-batch slides -o table.csv --dry-run",
        *(f"cervix-batch slides -o shard-{number}.csv -b 4 --shard {number}/2" for number in (1, 2)),
        "cervix-merge joined.csv shard-1.csv shard-2.csv",
        "cervix-verify openvino.csv",
        "cervix-report openvino.csv -o again.html --tiles slides",
        "cervix-compare openvino.csv onnxruntime-cpu.csv -o changes.csv",
        f"cervix-bench --out bench.json --plot bench.png {BENCH}",
    ]
    assert {line.split()[0] for line in chain} == set(COMMANDS), "every command is in the chain"
    seen = {}
    for line in chain:
        program, *arguments = line.split()
        watched.run(SCRIPTS / program, *arguments)
        if watched.asked or watched.left_at_home:
            seen[line] = (watched.asked, watched.left_at_home)
    assert seen == {}
